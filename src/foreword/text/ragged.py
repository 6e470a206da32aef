"""Encoded examples as ragged batches: rows end to end without padding, limited by their number of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from foreword.core import Batch, Front
from foreword.text.encoded_example import EncodedExample

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def make_batch(
    front: Front,
    examples: Sequence[EncodedExample],
    device: torch.device | str | None = None,
    *,
    is_encoder_decoder: bool = False,
) -> tuple[Batch, torch.Tensor]:
    """A batch of examples behind one front, and the indices ``[K]`` of all their ``output_indices`` in it.

    Args:
        is_encoder_decoder: tokens behind an example's first output index are the decoder's, so they become a sequence
            of their own that continues the text.
    """
    import torch

    rows: list[Sequence[int]] = []
    parents: list[int | None] = []
    for example in examples:
        end = example.output_indices[0] + 1 if is_encoder_decoder else len(example.token_ids)
        rows.append(example.token_ids[:end])
        parents.append(None)
        if end < len(example.token_ids):
            rows.append(example.token_ids[end:])
            parents.append(len(rows) - 2)
    batch = Batch.from_rows(front, rows, parents, device)
    indices, start = [], batch.starts[len(batch.lengths) - len(rows)]
    for example in examples:
        indices += [start + index for index in example.output_indices]
        start += len(example.token_ids)
    return batch, torch.tensor(indices, device=device)


def batch_by_tokens(items: Sequence[tuple[T, int]], max_tokens: int) -> Iterator[list[T]]:
    """Consecutive items, as many as have at most ``max_tokens`` together; an item with more makes a batch of its own.

    Args:
        items: each with its number of tokens.
    """
    batch: list[T] = []
    used = 0
    for item, size in items:
        if batch and used + size > max_tokens:
            yield batch
            batch, used = [], 0
        batch.append(item)
        used += size
    if batch:
        yield batch
