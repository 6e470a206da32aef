"""`DecoderInputs`: what the decoder of an encoder-decoder is given, read off a ragged batch."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from foreword.core import Batch
from foreword.errors import UsageError


@dataclass(frozen=True)
class DecoderInputs:
    """One row for every sequence that no other one continues: the tokens from its text's end to its own.

    Attributes:
        batch: texts (sequences without a parent), and what is written behind them.
        places: of every row, the places in the batch of its tokens; none right behind a text.
        texts: of every row, which text it is written for.
        rows: of every sequence, a row that it is in.
        depths: of every sequence, how many of the decoder's tokens come before its own.
    """

    batch: Batch
    token_indices: tuple[list[int], ...]
    text_indices: tuple[int, ...]
    rows: tuple[int, ...]
    depths: tuple[int, ...]

    @classmethod
    def from_batch(cls, batch: Batch) -> DecoderInputs:
        paths: list[list[int]] = []
        texts: list[int] = []
        count = 0
        for index, parent in enumerate(batch.parents):
            own = [] if parent is None else [*paths[parent], *range(batch.starts[index], batch.starts[index + 1])]
            paths.append(own)
            texts.append(count if parent is None else texts[parent])
            count += parent is None
        ends = _ends(batch.parents)
        row_of = {end: row for row, end in enumerate(sorted(set(ends)))}
        return cls(
            batch,
            token_indices=tuple(paths[end] for end in row_of),
            text_indices=tuple(texts[end] for end in row_of),
            rows=tuple(row_of[end] for end in ends),
            depths=tuple(0 if parent is None else len(paths[parent]) for parent in batch.parents),
        )

    def logits_index(self, place: int) -> tuple[int, int]:
        """Row, and column behind the start token, of the logits after a token. Raises UsageError inside a text."""
        index = bisect_right(self.batch.starts, place) - 1
        start, end = self.batch.starts[index : index + 2]
        if self.batch.parents[index] is not None:
            return self.rows[index], self.depths[index] + place - start + 1
        if place != end - 1:
            raise UsageError("an encoder-decoder answers behind a whole text, not inside one.")
        return self.rows[index], 0


def _ends(parents: tuple[int | None, ...]) -> list[int]:
    """Of every sequence, one that goes on from it (or is itself) and that no other continues."""
    ends = list(range(len(parents)))
    for index in reversed(range(len(parents))):
        parent = parents[index]
        if parent is not None:
            ends[parent] = ends[index]
    return ends
