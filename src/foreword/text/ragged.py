"""Questions as a ragged batch, the places in it whose outputs are read, and how much goes through the model at once."""

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
    """Each question once; all its places.

    Args:
        decoder: for an encoder-decoder; tokens behind a question's first place are written by the decoder, so they
            become a sequence of their own that continues the question.
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
    places, start = [], batch.starts[len(batch.lengths) - len(rows)]
    for example in examples:
        places += [start + place for place in example.output_indices]
        start += len(example.token_ids)
    return batch, torch.tensor(places, device=device)


def batch_by_tokens(items: Sequence[tuple[T, int]], max_tokens: int) -> Iterator[list[T]]:
    """Items with their sizes, in their order, as many at a time as fit into a forward of so many tokens; one that has
    more by itself goes alone."""
    chosen: list[T] = []
    used = 0
    for item, size in items:
        if chosen and used + size > max_tokens:
            yield chosen
            chosen, used = [], 0
        chosen.append(item)
        used += size
    if chosen:
        yield chosen
