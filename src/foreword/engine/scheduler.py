"""Which tokens run in the next step: answers first, then prompts in chunks, within a budget; and who gives way when the
cache is full.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from foreword.engine.sequence import Sequence

# Of so many admissions, one is for whoever has waited longest, whatever its priority and however busy its group.
AGING = 8


@dataclass(frozen=True)
class ScheduledTokens:
    """Own tokens ``start..end`` of a sequence, to be run in one step.

    Attributes:
        samples: they end with the sequence's newest token, so the next one can be chosen.
    """

    sequence: Sequence
    start: int
    end: int
    samples: bool

    @property
    def tokens(self) -> int:
        return self.end - self.start


class Cache(Protocol):
    """Where keys and values of sequences are kept; `foreword.engine.cache.PagedCache` is one."""

    def admit(self, sequence: Sequence) -> bool:
        """Give a sequence room for its tokens so far, behind its prefix, and set ``sequence.computed`` to those that
        are there already; False, and nothing happens, if there is none."""
        ...

    def grow(self, sequence: Sequence) -> bool:
        """Room for the newest token of an admitted sequence; False if there is none left."""
        ...

    def remember(self, sequence: Sequence) -> None:
        """Called when the tokens of a sequence up to ``sequence.computed`` were run."""
        ...

    def release(self, sequence: Sequence) -> None:
        """Let go of everything that a sequence holds."""
        ...


class Scheduler:
    """Queues of waiting and running sequences; requests join and leave between steps.

    Admitted next is the highest priority, among equals the group (mostly a task) with the fewest running sequences, and
    in a group who came first; one admission in `AGING` goes to whoever came first of all. Nobody is overtaken by being
    large: if the chosen one finds no room, the others wait with it. A running answer that finds no room for its next
    token takes that of the sequence with the lowest priority that was admitted last, which waits again and computes
    anew what is not remembered.

    Args:
        cache: its room bounds how many sequences run.
        budget: tokens a step at most, so that a long prompt does not stall running answers.
        batch: sequences a step at most.
    """

    def __init__(self, cache: Cache, budget: int, batch: int) -> None:
        self.running: list[Sequence] = []
        self.preempted = 0
        self.reused = 0
        self._waiting: dict[tuple[int, str], deque[Sequence]] = {}
        self._numbers = count()
        self._number: dict[Sequence, int] = {}
        self._admissions = 0
        self._next: Sequence | None = None
        self._cache = cache
        self._budget = budget
        # With more sequences than tokens, those at the end would never have a turn.
        self.batch = min(batch, budget)

    @property
    def waiting(self) -> list[Sequence]:
        """In the order in which they came."""
        return sorted((s for queue in self._waiting.values() for s in queue), key=self._number.__getitem__)

    @property
    def waits(self) -> int:
        """How many are waiting."""
        return len(self._number) - len(self.running)

    @property
    def sequences(self) -> list[Sequence]:
        """All of them; asked for at every step, so those that wait are not put in order."""
        return list(self._number)

    def add(self, sequence: Sequence) -> None:
        self._number[sequence] = next(self._numbers)
        self._queue(sequence).append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a finished or cancelled sequence and free what it holds."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._cache.release(sequence)
        else:
            self._leave(sequence)
        del self._number[sequence]

    def schedule(self) -> list[ScheduledTokens]:
        """Admit what fits, then share the step's tokens: answers first, then prompts in the order of admission.

        The plan is sorted by how many keys each work sees, single tokens first, so that works alike lie together.
        """
        self._admit()
        plan = self._plan()
        return sorted(plan, key=lambda work: (work.tokens > 1, work.sequence.front_length + work.end))

    def _admit(self) -> None:
        while self._waiting and len(self.running) < self.batch:
            # The chosen one stays the chosen one until it has room.
            self._next = sequence = self._next or self._choose()
            if not self._cache.admit(sequence):
                return
            if sequence.reused is None:
                sequence.reused = sequence.computed
                self.reused += sequence.computed
            self._leave(sequence)
            self.running.append(sequence)
            self._admissions += 1

    def _choose(self) -> Sequence:
        heads = [queue[0] for queue in self._waiting.values()]
        first = min(heads, key=self._number.__getitem__)
        if self._admissions % AGING == AGING - 1:
            return first
        busy = Counter(sequence.request.group for sequence in self.running)

        def rank(sequence: Sequence) -> tuple[int, int, int]:
            return -sequence.request.priority, busy[sequence.request.group], self._number[sequence]

        return min(heads, key=rank)

    def _plan(self) -> list[ScheduledTokens]:
        budget, plan = self._budget, dict[Sequence, ScheduledTokens]()
        # An answer has one token to run; a prompt has many and can wait for the rest of the budget.
        for sequence in sorted(self.running, key=lambda s: (s.length - s.computed > 1, -s.request.priority)):
            if sequence not in self.running:  # it gave way
                continue
            end = min(sequence.length, sequence.computed + budget)
            if end <= sequence.computed or not self._make_room(sequence, plan):
                continue
            plan[sequence] = ScheduledTokens(sequence, sequence.computed, end, samples=end == sequence.length)
            budget = self._budget - sum(work.tokens for work in plan.values())
        return list(plan.values())

    def _make_room(self, sequence: Sequence, plan: dict[Sequence, ScheduledTokens]) -> bool:
        """Room for the sequence's newest token; False if it had to give way itself."""
        while not self._cache.grow(sequence):
            places = {other: place for place, other in enumerate(self.running)}
            last = min(self.running, key=lambda other: (other.request.priority, -places[other]))
            plan.pop(last, None)
            self._preempt(last)
            if last is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._cache.release(sequence)
        self._queue(sequence).appendleft(sequence)
        self.preempted += 1

    def _queue(self, sequence: Sequence) -> deque[Sequence]:
        return self._waiting.setdefault((sequence.request.priority, sequence.request.group), deque())

    def _leave(self, sequence: Sequence) -> None:
        queue = self._queue(sequence)
        queue.remove(sequence)
        if not queue:
            del self._waiting[sequence.request.priority, sequence.request.group]
        if self._next is sequence:
            self._next = None
