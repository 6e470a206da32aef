"""`DecoderInputs`: the decoder rows of an encoder-decoder, made from a ragged batch."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from foreword.core import Batch
from foreword.errors import UsageError


@dataclass(frozen=True)
class DecoderInputs:
    """Decoder rows: one for every leaf sequence of the batch, with its decoder tokens from the text's end on.

    Attributes:
        batch: texts (sequences without a parent), and decoder tokens behind them.
        token_indices: of every row, the indices of its tokens in the batch; none for a text alone.
        text_indices: of every row, the number of its text.
        rows: of every sequence, a row that contains it.
        depths: of every sequence, how many decoder tokens come before its own.
    """

    batch: Batch
    token_indices: tuple[list[int], ...]
    text_indices: tuple[int, ...]
    rows: tuple[int, ...]
    depths: tuple[int, ...]

    @classmethod
    def from_batch(cls, batch: Batch) -> DecoderInputs:
        """The rows of a batch."""
        paths: list[list[int]] = []
        texts: list[int] = []
        count = 0
        for index, parent in enumerate(batch.parents):
            own = [] if parent is None else [*paths[parent], *range(batch.starts[index], batch.starts[index + 1])]
            paths.append(own)
            texts.append(count if parent is None else texts[parent])
            count += parent is None
        leaves = _leaves(batch.parents)
        row_of = {leaf: row for row, leaf in enumerate(sorted(set(leaves)))}
        return cls(
            batch,
            token_indices=tuple(paths[leaf] for leaf in row_of),
            text_indices=tuple(texts[leaf] for leaf in row_of),
            rows=tuple(row_of[leaf] for leaf in leaves),
            depths=tuple(0 if parent is None else len(paths[parent]) for parent in batch.parents),
        )

    def logits_index(self, token: int) -> tuple[int, int]:
        """Row and column of the logits after a token of the batch; column 0 is the start token's.

        Raises:
            UsageError: the token is inside a text.
        """
        index = bisect_right(self.batch.starts, token) - 1
        start, end = self.batch.starts[index : index + 2]
        if self.batch.parents[index] is not None:
            return self.rows[index], self.depths[index] + token - start + 1
        if token != end - 1:
            raise UsageError("an encoder-decoder answers behind a whole text, not inside one.")
        return self.rows[index], 0


def _leaves(parents: tuple[int | None, ...]) -> list[int]:
    """Of every sequence, a leaf among it and its descendants."""
    leaves = list(range(len(parents)))
    for index in reversed(range(len(parents))):
        parent = parents[index]
        if parent is not None:
            leaves[parent] = leaves[index]
    return leaves
