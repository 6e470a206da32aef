"""`Scheduler`: which tokens of which sequences run in the next step, and which sequence is preempted when the cache is
full. Follows vLLM's scheduler (``vllm/v1/core/sched``) without its asynchronous parts.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from foreword.engine.sequence import Sequence

AGING_INTERVAL = 8
"""One admission in so many goes to the sequence that waits longest, whatever its priority and its group."""


@dataclass(frozen=True)
class ScheduledTokens:
    """Own tokens ``start..end`` of a sequence, to be run in one step.

    Attributes:
        needs_logits: they end with the sequence's newest token, so the next one is sampled.
    """

    sequence: Sequence
    start: int
    end: int
    needs_logits: bool

    @property
    def num_tokens(self) -> int:
        return self.end - self.start


class KVCacheManager(Protocol):
    """Allocates the cache of keys and values to sequences; `foreword.engine.cache.PagedCache` is one."""

    def allocate(self, sequence: Sequence) -> bool:
        """Allocate room for a sequence's prefix and tokens, and set ``sequence.num_computed_tokens`` to those found in
        the cache. False, and nothing changes, if there is no room."""
        ...

    def extend(self, sequence: Sequence) -> bool:
        """Allocate room for the newest token of an allocated sequence; False if there is none."""
        ...

    def cache_tokens(self, sequence: Sequence) -> None:
        """Make the tokens up to ``sequence.num_computed_tokens`` reusable by other sequences; called after each step
        that ran some of them."""
        ...

    def free(self, sequence: Sequence) -> None:
        """Free everything that a sequence holds."""
        ...


class Scheduler:
    """Continuous batching: sequences wait, run and leave between steps.

    Admitted next is the highest priority, among equals the group (mostly a task) with the fewest running sequences, and
    in a group the first to arrive; one admission in `AGING_INTERVAL` goes to the first to arrive of all. Small
    sequences do not overtake: if the next one finds no room, the others wait with it. When a running sequence finds no
    room for its next token, the sequence of the lowest priority that was admitted last is preempted: it waits again,
    and what the cache no longer holds of it is recomputed.

    Args:
        cache: bounds by its room how many sequences run.
        max_num_batched_tokens: tokens a step at most, so that a long prompt does not stall running answers.
        max_num_seqs: sequences a step at most.
        chunk: run prompts in chunks that end at multiples of this many tokens, whole, and everything behind a prompt a
            token at a time, also after a preemption: the shapes of a sequence then depend on itself alone. Steps must
            have room for it beside all other sequences.
        whole_prompts: run a prompt in one step, also one that is longer than a step, and everything behind it a token
            at a time: an encoder reads its text as a whole.

    Attributes:
        running: admitted sequences, in the order of their admission.
        num_preemptions: counter since the start.
        num_cached_tokens: counter of prompt tokens that were found in the cache.
    """

    def __init__(
        self,
        cache: KVCacheManager,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        chunk: int | None = None,
        *,
        whole_prompts: bool = False,
    ) -> None:
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self._queues: dict[tuple[int, str], deque[Sequence]] = {}
        self._arrivals = count()
        self._arrival: dict[Sequence, int] = {}
        self._num_admissions = 0
        self._next: Sequence | None = None
        self._cache = cache
        self._max_num_batched_tokens = max_num_batched_tokens
        self._chunk = chunk
        self._whole_prompts = whole_prompts
        # With more sequences than tokens, those at the end would never have a turn.
        self.max_num_seqs = min(max_num_seqs, max_num_batched_tokens)

    @property
    def waiting(self) -> list[Sequence]:
        """Sequences that wait, in the order of their arrival."""
        return sorted((s for queue in self._queues.values() for s in queue), key=self._arrival.__getitem__)

    @property
    def num_waiting(self) -> int:
        return len(self._arrival) - len(self.running)

    @property
    def sequences(self) -> list[Sequence]:
        """All sequences, unsorted: this is read at every step."""
        return list(self._arrival)

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait."""
        self._arrival[sequence] = next(self._arrivals)
        self._queue(sequence).append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Drop a finished or cancelled sequence and free its cache."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._cache.free(sequence)
        else:
            self._dequeue(sequence)
        del self._arrival[sequence]

    def schedule(self) -> list[ScheduledTokens]:
        """Admit what fits, then distribute the step's tokens: answers first, then prompts in the order of admission.

        Sorted by how many keys the tokens attend to, single tokens first, so that similar ones are neighbours.
        """
        self._admit()
        scheduled = self._distribute_tokens()
        return sorted(scheduled, key=lambda each: (each.num_tokens > 1, each.sequence.paged_prefix_length + each.end))

    def _admit(self) -> None:
        while self._queues and len(self.running) < self.max_num_seqs:
            # A selected sequence stays selected until it has room.
            self._next = sequence = self._next or self._select()
            if not self._cache.allocate(sequence):
                return
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = sequence.num_computed_tokens
                self.num_cached_tokens += sequence.num_computed_tokens
            self._dequeue(sequence)
            self.running.append(sequence)
            self._num_admissions += 1

    def _select(self) -> Sequence:
        """The waiting sequence to admit next."""
        heads = [queue[0] for queue in self._queues.values()]
        first = min(heads, key=self._arrival.__getitem__)
        if self._num_admissions % AGING_INTERVAL == AGING_INTERVAL - 1:
            return first
        num_running = Counter(sequence.request.group for sequence in self.running)

        def rank(sequence: Sequence) -> tuple[int, int, int]:
            return -sequence.request.priority, num_running[sequence.request.group], self._arrival[sequence]

        return min(heads, key=rank)

    def _distribute_tokens(self) -> list[ScheduledTokens]:
        budget, scheduled = self._max_num_batched_tokens, dict[Sequence, ScheduledTokens]()
        # An answer has one token to run; a prompt has many and can wait for the rest of the budget.
        order = sorted(self.running, key=lambda s: (s.num_tokens - s.num_computed_tokens > 1, -s.request.priority))
        for sequence in order:
            if sequence not in self.running:  # it was preempted
                continue
            start, end = sequence.num_computed_tokens, self._end(sequence, budget)
            if end <= start or not self._extend_or_preempt(sequence, scheduled):
                continue
            scheduled[sequence] = ScheduledTokens(sequence, start, end, needs_logits=end == sequence.num_tokens)
            budget = self._max_num_batched_tokens - sum(each.num_tokens for each in scheduled.values())
        return list(scheduled.values())

    def _end(self, sequence: Sequence, budget: int) -> int:
        """The end of the tokens that a sequence runs in a step with room for ``budget`` more; their start for none."""
        start = sequence.num_computed_tokens
        if self._chunk is not None:
            return self._chunk_end(sequence, budget)
        if not self._whole_prompts:
            return min(sequence.num_tokens, start + budget)
        return max(start + 1, len(sequence.request.token_ids)) if budget > 0 else start

    def _chunk_end(self, sequence: Sequence, budget: int) -> int:
        """The end of the sequence's next chunk; its beginning if the step has no room for the whole of it."""
        assert self._chunk is not None
        start, prompt = sequence.num_computed_tokens, len(sequence.request.token_ids)
        end = start + 1 if start >= prompt else min(prompt, (start // self._chunk + 1) * self._chunk)
        end = min(end, sequence.num_tokens)
        return end if end - start <= budget else start

    def _extend_or_preempt(self, sequence: Sequence, scheduled: dict[Sequence, ScheduledTokens]) -> bool:
        """Allocate the sequence's newest token, preempting as many others as it takes; False if it was preempted."""
        while not self._cache.extend(sequence):
            admitted = {other: place for place, other in enumerate(self.running)}
            victim = min(self.running, key=lambda other: (other.request.priority, -admitted[other]))
            scheduled.pop(victim, None)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._cache.free(sequence)
        self._queue(sequence).appendleft(sequence)
        self.num_preemptions += 1

    def _queue(self, sequence: Sequence) -> deque[Sequence]:
        return self._queues.setdefault((sequence.request.priority, sequence.request.group), deque())

    def _dequeue(self, sequence: Sequence) -> None:
        queue = self._queue(sequence)
        queue.remove(sequence)
        if not queue:
            del self._queues[sequence.request.priority, sequence.request.group]
        if self._next is sequence:
            self._next = None
