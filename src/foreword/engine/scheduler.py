"""Which tokens run in the next step: first come, first served, prompts in chunks beside running answers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from foreword.engine.cache import PagedCache
from foreword.engine.sequence import Sequence


@dataclass(frozen=True)
class Work:
    """Own tokens ``start..end`` of a sequence, to be run in one step.

    Attributes:
        samples: they end with the sequence's newest token, so the next one can be chosen.
    """

    sequence: Sequence
    start: int
    end: int
    samples: bool


class Scheduler:
    """Queues of waiting and running sequences; requests join and leave between steps.

    Nobody is overtaken for good: who waits longest is admitted first, however much room it needs, and every
    running sequence has its pages until it ends.

    Args:
        cache: its pages bound how many sequences run.
        budget: tokens a step at most, so that a long prompt does not stall running answers.
        batch: sequences a step at most.
    """

    def __init__(self, cache: PagedCache, budget: int, batch: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._cache = cache
        self._budget = budget
        # With more sequences than tokens, those at the end would never have a turn.
        self._batch = min(batch, budget)

    @property
    def sequences(self) -> list[Sequence]:
        return [*self.running, *self.waiting]

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished or cancelled sequence and free what it holds."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._cache.release(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> list[Work]:
        """Admit what fits, then share the step's tokens: running answers first, then prompts in order."""
        while self.waiting and len(self.running) < self._batch and self._cache.can_allocate(self.waiting[0]):
            sequence = self.waiting.popleft()
            self._cache.allocate(sequence)
            self.running.append(sequence)
        budget = self._budget
        plan = []
        # An answer has one token to run; a prompt has many and can wait for the rest of the budget.
        for sequence in sorted(self.running, key=lambda s: s.length - s.computed > 1):
            end = min(sequence.length, sequence.computed + budget)
            if end > sequence.computed:
                plan.append(Work(sequence, sequence.computed, end, samples=end == sequence.length))
                budget -= end - sequence.computed
        return plan
