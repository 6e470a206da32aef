"""Position embeddings of decoder rows that are padded in front, where a model counts from the start of its cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def positions_of_rows(decoder: nn.Module, lengths: Sequence[int], longest: int) -> Iterator[None]:
    """Give every row of a one-token forward the position that it would have without its padding.

    BART and its kin make the positions of all rows at once, of how long the cache is, in a module ``embed_positions``.
    It is run once for each length instead. A decoder without such a module stays as it is.

    Args:
        lengths: positions of every row's cache.
        longest: positions of the cache, padding included.
    """
    embedding = getattr(decoder, "embed_positions", None)
    if not isinstance(embedding, nn.Module):
        yield
        return

    def by_row(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any], output: Tensor) -> Tensor:
        found: dict[int, Tensor] = {longest: output}
        for length in set(lengths) - {longest}:
            moved = [_moved(value, longest, length) for value in args]
            found[length] = module.forward(*moved, **{k: _moved(v, longest, length) for k, v in given.items()})
        return torch.stack([_row(found[length], row, len(lengths)) for row, length in enumerate(lengths)])

    handle = embedding.register_forward_hook(by_row, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _moved(value: Any, longest: int, length: int) -> Any:
    """An argument for a shorter cache: its length, or the position of the token behind it."""
    if isinstance(value, int) and value == longest:
        return length
    if isinstance(value, Tensor) and value.dim() == 1 and len(value) == 1 and int(value) == longest:
        return value - (longest - length)
    return value


def _row(output: Tensor, row: int, rows: int) -> Tensor:
    """``[1, hidden]`` of one row, from an output for one row or for all."""
    whole = output[None] if output.dim() == 2 else output
    return whole[row if whole.shape[0] == rows else 0]
