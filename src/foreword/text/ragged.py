"""Questions as a ragged batch, and the places in it whose outputs are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from foreword.core import Batch, Front
from foreword.text.question import Question

if TYPE_CHECKING:
    import torch


def lay_out(
    front: Front,
    questions: Sequence[Question],
    device: torch.device | str | None = None,
    *,
    decoder: bool = False,
) -> tuple[Batch, torch.Tensor]:
    """Each question once; all its places.

    Args:
        decoder: for an encoder-decoder; tokens behind a question's first place are written by the decoder, so they
            become a sequence of their own that continues the question.
    """
    import torch

    rows: list[Sequence[int]] = []
    parents: list[int | None] = []
    for question in questions:
        end = question.places[0] + 1 if decoder else len(question.token_ids)
        rows.append(question.token_ids[:end])
        parents.append(None)
        if end < len(question.token_ids):
            rows.append(question.token_ids[end:])
            parents.append(len(rows) - 2)
    batch = Batch.behind(front, rows, parents, device)
    places, start = [], batch.starts[len(batch.lengths) - len(rows)]
    for question in questions:
        places += [start + place for place in question.places]
        start += len(question.token_ids)
    return batch, torch.tensor(places, device=device)
