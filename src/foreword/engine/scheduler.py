"""`Scheduler`: which tokens of which sequences run in the next step, and which sequence is preempted when there is no
room, or when another tenant waits. Follows vLLM's scheduler (``vllm/v1/core/sched``) without its asynchronous parts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count, groupby
from typing import Protocol

from foreword.engine.sequence import Sequence

AGING_INTERVAL = 8
"""One admission in so many goes to the sequence of a group that waits longest, whatever its priority."""
PATIENCE = 64
"""Admissions after which a tenant or group of which nothing runs is passed over by no other any more."""
SETTLED_TOKENS = 8
"""Tokens that a sequence which was preempted for another's sake generates before it can be so again."""
SHARED_TOKENS = 16
"""Tokens for which a CPU takes about as long as for one, since it reads the weights for either."""
EPSILON = 1e-9


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


class AllocationError(Exception):
    """The cache could not take a sequence, for a fault of the sequence's own.

    Attributes:
        sequence: it is still waiting, and nothing is allocated to it.
    """

    def __init__(self, sequence: Sequence) -> None:
        super().__init__("the cache could not take this request")
        self.sequence = sequence


class KVCacheManager(Protocol):
    """Allocates the cache of keys and values to sequences; `foreword.engine.cache.PagedCache` is one."""

    @property
    def num_positions(self) -> int:
        """That it has for all sequences together."""
        ...

    def allocate(self, sequence: Sequence) -> bool:
        """Allocate room for a sequence's prefix and tokens, and set ``sequence.num_computed_tokens`` to those found in
        the cache. False, and nothing changes, if there is no room; nothing changes either if it raises."""
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


Key = tuple[str, ...]
"""A tenant ``(tenant,)`` or a group ``(tenant, group)``."""


@dataclass(eq=False)
class _Visit:
    """What is known of a sequence from its arrival to its end.

    Attributes:
        arrival: its number.
        next_since: number of admissions when it became the next of its group.
        num_output_tokens: that it had when it was admitted last.
        gave_way: it was preempted for the sake of another tenant or group.
        last_step: in which it ran.
    """

    arrival: int
    next_since: int | None = None
    num_output_tokens: int = 0
    gave_way: bool = False
    last_step: int = -1


class Scheduler:
    """Continuous batching: sequences wait, run and leave between steps.

    Tenants share the places of a step and the cache, and within a tenant its groups (mostly tasks) do. Admitted next is
    the highest priority, among equals the tenant that will hold least with it, in a tenant the group that will hold
    least, and in a group the first to arrive. If there is no room for it, a tenant or group that holds more than that
    gives way: its sequence that was admitted last is preempted, waits again, and recomputes what the cache no longer
    holds of it. While no other waits, a tenant may hold everything. Nothing overtakes the next one, and one of which
    nothing runs is passed over `PATIENCE` times at most.

    When a running sequence finds no room for its next token, the sequence of the lowest priority, of the tenant that
    holds most, that was admitted last is preempted.

    Args:
        cache: bounds by its room how many sequences run.
        max_num_batched_tokens: tokens a step at most, so that a long prompt does not stall running answers.
        max_num_seqs: sequences a step at most.
        chunk: run prompts in chunks that end at multiples of this many tokens, whole, and everything behind a prompt a
            token at a time, also after a preemption: the shapes of a sequence then depend on itself alone. Steps must
            have room for it beside all other sequences.
        whole_prompts: run a prompt in one step, also one that is longer than a step, and everything behind it a token
            at a time: an encoder reads its text as a whole.
        max_num_shared_tokens: of a step that several tenants have a part in, tokens that one may take, or twice those
            of the tenant that asks least if that is more; its answers take turns. Where the time of a step grows with
            its tokens, so does everybody's waiting. ``None`` for no bound.

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
        max_num_shared_tokens: int | None = None,
    ) -> None:
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self._queues: dict[tuple[str, str, int], deque[Sequence]] = {}  # by tenant, group and priority
        self._arrivals = count()
        self._visits: dict[Sequence, _Visit] = {}
        self._apart: deque[Sequence] = deque()
        self._num_admissions = 0
        self._num_steps = 0
        self._cache = cache
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_num_shared_tokens = max_num_shared_tokens
        self._chunk = chunk
        self._whole_prompts = whole_prompts
        # With more sequences than tokens, those at the end would never have a turn.
        self.max_num_seqs = min(max_num_seqs, max_num_batched_tokens)

    @property
    def waiting(self) -> list[Sequence]:
        """Sequences that wait, in the order of their arrival."""
        return sorted((s for queue in self._queues.values() for s in queue), key=self._arrival)

    @property
    def num_waiting(self) -> int:
        return len(self._visits) - len(self.running)

    @property
    def sequences(self) -> list[Sequence]:
        """All sequences, unsorted: this is read at every step."""
        return list(self._visits)

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait."""
        self._visits[sequence] = _Visit(next(self._arrivals))
        self._queue(sequence).append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Drop a finished or cancelled sequence and free its cache."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._cache.free(sequence)
        else:
            self._dequeue(sequence)
        if sequence in self._apart:
            self._apart.remove(sequence)
        del self._visits[sequence]

    def run_apart(self, sequences: Iterable[Sequence]) -> None:
        """Preempt running sequences whose common step failed, and run each alone until it has its next token.

        What a failed step left of them in the cache is not used again.
        """
        for sequence in sequences:
            self._preempt(sequence)
            if sequence not in self._apart:
                self._apart.append(sequence)

    def schedule(self) -> list[ScheduledTokens]:
        """Admit what fits, then distribute the step's tokens: answers first, then prompts in the order of admission.

        Sorted by how many keys the tokens attend to, single tokens first, so that similar ones are neighbours.

        Raises:
            AllocationError: remove its sequence and go on.
        """
        self._num_steps += 1
        self._admit()
        scheduled = self._distribute_tokens(self._taking_part())
        for each in scheduled:
            self._visits[each.sequence].last_step = self._num_steps
        if len(scheduled) == 1 and scheduled[0].needs_logits and scheduled[0].sequence in self._apart:
            self._apart.remove(scheduled[0].sequence)  # if it fails now, it is the one
        return sorted(scheduled, key=lambda each: (each.num_tokens > 1, each.sequence.paged_prefix_length + each.end))

    def _taking_part(self) -> list[Sequence]:
        """Running sequences of the next step: one of those that run apart, and all others, in turn."""
        apart = [sequence for sequence in self.running if sequence in self._apart]
        others = [sequence for sequence in self.running if sequence not in self._apart]
        return apart[:1] if apart and (not others or self._num_steps % 2) else others

    def _admit(self) -> None:
        while self._queues:
            sequence = self._select()
            if not self._make_room(sequence):
                return
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = sequence.num_computed_tokens
                self.num_cached_tokens += sequence.num_computed_tokens
            self._dequeue(sequence)
            self.running.append(sequence)
            self._visits[sequence].num_output_tokens = len(sequence.output_token_ids)
            self._num_admissions += 1

    def _select(self) -> Sequence:
        """The waiting sequence to admit next."""
        held = self._held()
        heads: dict[tuple[str, str], list[Sequence]] = {}
        for queue in self._queues.values():
            heads.setdefault(_group(queue[0]), []).append(queue[0])
        of_tenants: dict[str, list[Sequence]] = {}
        for of_group in heads.values():
            sequence = self._next_of_group(of_group)
            of_tenants.setdefault(sequence.request.tenant, []).append(sequence)

        def rank(sequence: Sequence, level: Callable[[Sequence], Key]) -> tuple[bool, int, float, int]:
            visit, key = self._visits[sequence], level(sequence)
            passed = self._num_admissions - visit.next_since if visit.next_since is not None else 0
            starved = key not in held and passed >= PATIENCE
            return not starved, -sequence.request.priority, held.get(key, 0.0) + self._cost(sequence), visit.arrival

        tenants = [min(sequences, key=lambda s: rank(s, _group)) for sequences in of_tenants.values()]
        return min(tenants, key=lambda s: rank(s, _tenant))

    def _next_of_group(self, heads: list[Sequence]) -> Sequence:
        """The next one among those of a group that come first by their priorities."""
        aging = self._num_admissions % AGING_INTERVAL == AGING_INTERVAL - 1
        sequence = min(heads, key=lambda s: (0 if aging else -s.request.priority, self._arrival(s)))
        visit = self._visits[sequence]
        if visit.next_since is None:
            visit.next_since = self._num_admissions
        return sequence

    def _make_room(self, sequence: Sequence) -> bool:
        """Allocate a waiting sequence, preempting others as far as fairness allows; False if there is no room."""
        while len(self.running) >= self.max_num_seqs or not self._allocate(sequence):
            victim = self._find_over_share(sequence)
            if victim is None:
                return False
            self._visits[victim].gave_way = True
            self._preempt(victim)
        return True

    def _allocate(self, sequence: Sequence) -> bool:
        try:
            return self._cache.allocate(sequence)
        except Exception as error:
            raise AllocationError(sequence) from error

    def _find_over_share(self, sequence: Sequence) -> Sequence | None:
        """The running sequence that gives way to a waiting one, if any must."""
        held, own = self._held(), self._cost(sequence)
        found: list[tuple[int, float, int]] = []
        for place, other in enumerate(self.running):
            level = _group if other.request.tenant == sequence.request.tenant else _tenant
            gap = held[level(other)] - held.get(level(sequence), 0.0) - own
            visit = self._visits[other]
            settled = len(other.output_token_ids) - visit.num_output_tokens >= SETTLED_TOKENS
            # Either the other side holds no less afterwards, or it changes hands for a while.
            gives_way = gap > EPSILON and settled
            gives_way |= gap > self._cost(other) - EPSILON and (settled or not visit.gave_way)
            if gives_way and level(other) != level(sequence) and other.request.priority <= sequence.request.priority:
                found.append((-other.request.priority, gap, place))
        return self.running[max(found)[2]] if found else None

    def _held(self) -> dict[Key, float]:
        """What the running sequences of each tenant and group hold."""
        held: dict[Key, float] = {}
        for sequence in self.running:
            cost = self._cost(sequence)
            for key in (_tenant(sequence), _group(sequence)):
                held[key] = held.get(key, 0.0) + cost
        return held

    def _cost(self, sequence: Sequence) -> float:
        """The part of the places or of the cache that a sequence takes, whichever is more."""
        return max(1 / self.max_num_seqs, sequence.num_tokens / self._cache.num_positions)

    def _arrival(self, sequence: Sequence) -> int:
        return self._visits[sequence].arrival

    def _distribute_tokens(self, running: list[Sequence]) -> list[ScheduledTokens]:
        scheduled: dict[Sequence, ScheduledTokens] = {}
        most = self._most_of_a_tenant(running)
        # An answer has one token to run; a prompt has many and can wait for the rest of the budget.
        answers = [sequence for sequence in running if _num_to_run(sequence) <= 1]
        prompts = [sequence for sequence in running if _num_to_run(sequence) > 1]
        if most is not None:
            answers.sort(key=lambda sequence: self._visits[sequence].last_step)
        for sequence in sorted(answers, key=_by_priority):
            self._give(sequence, scheduled, most)
        for _, equals in groupby(sorted(prompts, key=_by_priority), key=_by_priority):
            self._share_out(list(equals), scheduled, most)
        return list(scheduled.values())

    def _share_out(self, prompts: list[Sequence], scheduled: dict[Sequence, ScheduledTokens], most: int | None) -> None:
        """Divide what is left of a step among tenants, and among a tenant's groups; what one leaves goes to all."""
        groups = {_group(sequence) for sequence in prompts}
        num_groups = Counter(tenant for tenant, _ in groups)
        left = self._max_num_batched_tokens - _num_tokens(scheduled.values())
        shares = {key: max(self._chunk or 1, left // (len(num_groups) * num_groups[key[0]])) for key in groups}
        if len(groups) > 1:
            for sequence in prompts:
                shares[_group(sequence)] -= self._give(sequence, scheduled, most, shares[_group(sequence)])
        for sequence in prompts:
            self._give(sequence, scheduled, most)

    def _give(
        self,
        sequence: Sequence,
        scheduled: dict[Sequence, ScheduledTokens],
        most_of_tenant: int | None,
        most: int | None = None,
    ) -> int:
        """Schedule as many tokens of a sequence as it can run, those that it was given before included.

        Returns how many more they are.
        """
        if sequence not in self.running:  # it was preempted
            return 0
        before = scheduled.pop(sequence, None)
        budget = self._max_num_batched_tokens - _num_tokens(scheduled.values())
        if most_of_tenant is not None:
            tenant = sequence.request.tenant
            own = (each for each in scheduled.values() if each.sequence.request.tenant == tenant)
            budget = min(budget, most_of_tenant - _num_tokens(own))
        given = before.num_tokens if before is not None else 0
        if most is not None:
            budget = min(budget, most + given)
        start, end = sequence.num_computed_tokens, self._end(sequence, budget)
        if end > start and self._extend_or_preempt(sequence, scheduled):
            scheduled[sequence] = ScheduledTokens(sequence, start, end, needs_logits=end == sequence.num_tokens)
            return end - start - given
        return 0

    def _most_of_a_tenant(self, running: list[Sequence]) -> int | None:
        """Tokens of the step that each tenant may take; ``None`` without a bound."""
        if self._max_num_shared_tokens is None:
            return None
        wanted: Counter[str] = Counter()
        for sequence in running:
            wanted[sequence.request.tenant] += _num_to_run(sequence)
        if len(wanted) < 2:
            return None
        return max(self._max_num_shared_tokens, 2 * min(wanted.values()), self._chunk or 1)

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
            held = self._held()
            place = {other: place for place, other in enumerate(self.running)}
            victim = max(self.running, key=lambda other: (-other.request.priority, held[_tenant(other)], place[other]))
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
        return self._queues.setdefault((*_group(sequence), sequence.request.priority), deque())

    def _dequeue(self, sequence: Sequence) -> None:
        queue = self._queue(sequence)
        queue.remove(sequence)
        if not queue:
            del self._queues[*_group(sequence), sequence.request.priority]


def _tenant(sequence: Sequence) -> Key:
    return (sequence.request.tenant,)


def _group(sequence: Sequence) -> tuple[str, str]:
    return sequence.request.tenant, sequence.request.group


def _by_priority(sequence: Sequence) -> int:
    return -sequence.request.priority


def _num_to_run(sequence: Sequence) -> int:
    return sequence.num_tokens - sequence.num_computed_tokens


def _num_tokens(scheduled: Iterable[ScheduledTokens]) -> int:
    return sum(each.num_tokens for each in scheduled)
