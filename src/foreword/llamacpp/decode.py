"""`decode`: runs tokens and soft tokens of several sequences through llama.cpp, in batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from foreword.core import soft_id
from foreword.llamacpp.compat import Session, TokenBatch

OnLogits = Callable[[int, int, np.ndarray], None]
"""Called with the index of a `SequenceTokens`, an index in its ``token_ids``, and the logits ``[vocab]`` behind that
token, which the next batch overwrites."""


@dataclass(frozen=True, eq=False)
class SequenceTokens:
    """Consecutive tokens of one sequence, to be run.

    Attributes:
        seq_id: llama.cpp's sequence.
        start: position of the first token.
        token_ids: ids below 0 name rows of ``soft``.
        soft: ``[S, hidden]`` float32, or ``None``.
        output_indices: where in ``token_ids`` logits are read.
    """

    seq_id: int
    start: int
    token_ids: Sequence[int]
    soft: np.ndarray | None = None
    output_indices: Collection[int] = ()


def decode(session: Session, inputs: Sequence[SequenceTokens], on_logits: OnLogits) -> None:
    """Run all inputs, which must be of different sequences."""
    waiting = [_Cursor(index, each) for index, each in enumerate(inputs)]
    while waiting:
        # A batch holds token ids or embeddings, never both: first everything that can go on with ids.
        soft = all(cursor.at_soft for cursor in waiting)
        batch = session.embeds if soft else session.tokens
        outputs = _fill(batch, [cursor for cursor in waiting if cursor.at_soft == soft], session.max_outputs)
        session.decode(batch)
        for row, index, token_index in outputs:
            on_logits(index, token_index, session.logits(row))
        waiting = [cursor for cursor in waiting if not cursor.done]


class _Cursor:
    """How far one input has been run.

    Attributes:
        index: of the input.
        token_index: of its next token.
    """

    def __init__(self, index: int, tokens: SequenceTokens) -> None:
        self.index, self.tokens, self.token_index = index, tokens, 0

    @property
    def done(self) -> bool:
        return self.token_index == len(self.tokens.token_ids)

    @property
    def at_soft(self) -> bool:
        """Whether the next token is a soft one."""
        return self.tokens.token_ids[self.token_index] < 0

    def take(self, limit: int) -> Iterator[tuple[int, int]]:
        """Indices and ids of at most ``limit`` next tokens, all soft or none."""
        soft = self.at_soft
        while limit and not self.done and self.at_soft == soft:
            yield self.token_index, self.tokens.token_ids[self.token_index]
            self.token_index, limit = self.token_index + 1, limit - 1


def _fill(batch: TokenBatch, cursors: Sequence[_Cursor], max_outputs: int) -> list[tuple[int, int, int]]:
    """Put what fits into a batch. Returns row, input and index of the logits that are read."""
    outputs: list[tuple[int, int, int]] = []
    batch.count = 0
    for cursor in cursors:
        tokens = cursor.tokens
        for token_index, token in cursor.take(batch.capacity - batch.count):
            row, is_output = batch.count, token_index in tokens.output_indices
            if is_output and len(outputs) == max_outputs:
                return outputs
            if token < 0:
                assert tokens.soft is not None
                batch.embeds[row] = tokens.soft[soft_id(token)]
            batch.token_ids[row], batch.positions[row] = max(token, 0), tokens.start + token_index
            batch.seq_ids[row], batch.outputs[row] = tokens.seq_id, is_output
            if is_output:
                outputs.append((row, cursor.index, token_index))
            batch.count += 1
    return outputs
