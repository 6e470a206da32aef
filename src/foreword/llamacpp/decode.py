"""Tokens and soft tokens of several sequences on their way through llama.cpp, in batches of one kind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from foreword.core import soft_id
from foreword.llamacpp.compat import Session, TokenBatch

Read = Callable[[int, int, np.ndarray], None]
"""Is given the number of a run, a place in it, and the logits ``[vocab]`` behind it, which the next batch changes."""


@dataclass(frozen=True, eq=False)
class DecodeRun:
    """Tokens of one sequence.

    Attributes:
        sequence: llama.cpp's number.
        start: position of the first of them.
        token_ids: ids below 0 name rows of ``soft``.
        soft: ``[S, hidden]`` float32, or ``None``.
        wanted: places whose logits are read.
    """

    sequence: int
    start: int
    token_ids: Sequence[int]
    soft: np.ndarray | None = None
    wanted: Collection[int] = field(default_factory=frozenset)


def run(session: Session, runs: Sequence[DecodeRun], read: Read) -> None:
    """Run them all. Those of one sequence must be handed over in order, and in calls of their own."""
    waiting = [_Waiting(number, each) for number, each in enumerate(runs)]
    while waiting:
        # A batch holds tokens or embeddings, never both: first all that can go on with tokens, then the others.
        soft = all(each.soft for each in waiting)
        rows = session.embeds if soft else session.tokens
        placed = _fill(rows, [each for each in waiting if each.soft == soft], session.outputs)
        session.decode(rows)
        for row, number, place in placed:
            read(number, place, session.logits(row))
        waiting = [each for each in waiting if not each.done]


class _Waiting:
    """A run, and how far it has come."""

    def __init__(self, number: int, asked: DecodeRun) -> None:
        self.number, self.asked, self.at = number, asked, 0

    @property
    def done(self) -> bool:
        return self.at == len(self.asked.token_ids)

    @property
    def soft(self) -> bool:
        """Whether it goes on with a soft token."""
        return self.asked.token_ids[self.at] < 0

    def take(self, most: int) -> Iterator[tuple[int, int]]:
        """Places and ids of the next ones of one kind."""
        soft = self.soft
        while most and not self.done and self.soft == soft:
            yield self.at, self.asked.token_ids[self.at]
            self.at, most = self.at + 1, most - 1


def _fill(rows: TokenBatch, waiting: Sequence[_Waiting], outputs: int) -> list[tuple[int, int, int]]:
    """Put what fits into a batch; row, run and place of the logits that are wanted."""
    placed: list[tuple[int, int, int]] = []
    rows.count = 0
    for each in waiting:
        asked = each.asked
        for place, token in each.take(len(rows.tokens) - rows.count):
            row, wanted = rows.count, place in asked.wanted
            if wanted and len(placed) == outputs:
                each.at = place
                return placed
            if token < 0:
                assert asked.soft is not None
                rows.embeds[row] = asked.soft[soft_id(token)]
            rows.tokens[row], rows.positions[row] = max(token, 0), asked.start + place
            rows.sequences[row], rows.wanted[row] = asked.sequence, wanted
            if wanted:
                placed.append((row, each.number, place))
            rows.count += 1
    return placed
