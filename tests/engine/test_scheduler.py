"""Scheduling: admission order, token budget, preemption, page sharing."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reference import make_request
from foreword.engine.cache import PAGE_SIZE, PagedCache
from foreword.engine.scheduler import AGING_INTERVAL, Scheduler
from foreword.engine.sequence import Sequence
from foreword.engine.stream import ChunkStream
from foreword.engine.token_sampler import TokenSampler
from foreword.text.detokenize import Detokenizer
from tiny_models import tiny_model


def make_scheduler(pages: int = 8, budget: int = 32, batch: int = 4) -> Scheduler:
    lm = tiny_model("llama")
    return Scheduler(PagedCache(lm.identity.layers, pages, lm.dtype, lm.device), budget, batch)


def make_sequence(length: int, max_tokens: int = 4, stream: ChunkStream | None = None) -> Sequence:
    request = make_request(length, max_tokens=max_tokens)
    sampler, detokenizer = TokenSampler(request, frozenset()), Detokenizer(tiny_model("llama").tokenizer)
    return Sequence(request, None, sampler, detokenizer, weakref.ref(stream or ChunkStream(request, lambda: None)))


def advance(step) -> None:
    for scheduled in step:
        scheduled.sequence.num_computed_tokens = scheduled.end
        if scheduled.needs_logits:
            scheduled.sequence.output_token_ids.append(0)


def test_the_longest_waiting_is_admitted_first_however_large():
    scheduler = make_scheduler(pages=4)
    small, large, late = make_sequence(20), make_sequence(60), make_sequence(1)
    for each in (small, large, late):
        scheduler.add(each)
    assert [scheduled.sequence for scheduled in scheduler.schedule()] == [small]
    scheduler.remove(small)
    assert [scheduled.sequence for scheduled in scheduler.schedule()] == [large]


def test_running_answers_come_before_prompts():
    scheduler = make_scheduler(budget=10)
    first, second = make_sequence(4), make_sequence(30)
    scheduler.add(first)
    advance(scheduler.schedule())
    scheduler.add(second)
    step = scheduler.schedule()
    assert [(scheduled.sequence, scheduled.num_tokens, scheduled.needs_logits) for scheduled in step] == [
        (first, 1, True),
        (second, 9, False),
    ]


def test_a_request_of_one_token_does_not_wait_for_a_long_prompt():
    scheduler = make_scheduler(budget=10)
    scheduler.add(make_sequence(40))
    advance(scheduler.schedule())
    scheduler.add(make_sequence(1))
    assert [(scheduled.num_tokens, scheduled.needs_logits) for scheduled in scheduler.schedule()] == [
        (1, True),
        (9, False),
    ]


def test_more_sequences_than_tokens_never_run_at_once():
    scheduler = make_scheduler(budget=2, batch=4)
    for _ in range(3):
        scheduler.add(make_sequence(1))
    assert len(scheduler.schedule()) == 2
    assert len(scheduler.waiting) == 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    asked=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=12),
    budget=st.integers(1, 40),
    batch=st.integers(1, 8),
)
def test_every_sequence_comes_to_its_end(asked, budget, batch):
    cache_pages = -(-80 // PAGE_SIZE)
    scheduler = make_scheduler(cache_pages, budget, batch)
    for length, max_tokens in asked:
        scheduler.add(make_sequence(length, max_tokens))
    steps = 0
    while scheduler.sequences:
        step = scheduler.schedule()
        scheduler._cache.check()
        assert 0 < sum(scheduled.num_tokens for scheduled in step) <= budget
        assert len(step) <= batch
        advance(step)
        for scheduled in step:
            scheduler._cache.cache_tokens(scheduled.sequence)
            if len(scheduled.sequence.output_token_ids) == scheduled.sequence.request.sampling.max_tokens:
                scheduler.remove(scheduled.sequence)
        steps += 1
    assert steps <= sum(length + max_tokens for length, max_tokens in asked)
    assert scheduler._cache.num_free_pages == cache_pages


def test_an_answer_without_a_reader_is_cancelled():
    stream = ChunkStream(make_request(3), lambda: None)
    found = make_sequence(3, stream=stream)
    assert not found.cancelled
    stream.cancel()
    assert found.cancelled
    stream.cancelled = False
    del stream
    gc.collect()
    assert found.cancelled


def test_the_slot_table_repeats_the_last_slot():
    scheduler = make_scheduler()
    short, long = make_sequence(3), make_sequence(40)
    scheduler.add(short)
    scheduler.add(long)
    scheduler.schedule()
    table = scheduler._cache.slot_table([short, long], [2, 35], [0, 1])
    assert table.shape == (2, 34)
    assert table[0].tolist() == [short.slots[0]] + [short.slots[1]] * 33
    assert table[1].tolist() == long.slots[1:35].tolist()


def prioritized(length: int, priority: int = 0, group: str = "", max_tokens: int = 4) -> Sequence:
    found = make_sequence(length, max_tokens)
    found.request = replace(found.request, priority=priority, group=group)
    return found


def admitted(scheduler: Scheduler) -> list[Sequence]:
    """Sequences in the order of their admission, each removed before the next."""
    found = []
    while scheduler.sequences:
        scheduler.schedule()
        (running,) = scheduler.running
        found.append(running)
        scheduler.remove(running)
    return found


def test_higher_priorities_are_admitted_first():
    scheduler = make_scheduler(batch=1)
    low, high, middle = prioritized(3, 0), prioritized(3, 5), prioritized(3, 1)
    for each in (low, high, middle):
        scheduler.add(each)
    assert admitted(scheduler) == [high, middle, low]


def test_a_flood_of_one_task_does_not_starve_another():
    scheduler = make_scheduler(pages=64, batch=2)
    flood = [prioritized(3, group="flood") for _ in range(50)]
    for each in flood:
        scheduler.add(each)
    scheduler.schedule()
    assert scheduler.running == flood[:2]
    late = prioritized(3, group="small")
    scheduler.add(late)
    scheduler.remove(flood[0])
    scheduler.schedule()
    assert late in scheduler.running


def test_a_low_priority_is_admitted_in_the_end():
    scheduler = make_scheduler(batch=1)
    low = prioritized(3, priority=-1)
    scheduler.add(low)
    for _ in range(3 * AGING_INTERVAL):
        scheduler.add(prioritized(3, priority=1))
    assert admitted(scheduler).index(low) < AGING_INTERVAL


def test_a_full_cache_preempts_the_last_and_least_important():
    """Three prompts of a page each fill three pages; the first that needs a second page takes one."""
    scheduler = make_scheduler(pages=3, budget=64)
    first, important, last = prioritized(PAGE_SIZE), prioritized(PAGE_SIZE, 1), prioritized(PAGE_SIZE)
    for each in (first, important, last):
        scheduler.add(each)
    advance(scheduler.schedule())
    assert len(scheduler.running) == 3
    step = scheduler.schedule()
    assert last not in scheduler.running
    assert scheduler.waiting == [first, last]
    assert [(s.num_computed_tokens, s.pages) for s in scheduler.waiting] == [(0, [])] * 2
    # The other two want a page each, and there is one: the one of lower priority is preempted.
    assert [scheduled.sequence for scheduled in step] == [important]
    assert scheduler.num_preemptions == 2
    scheduler._cache.check()


def test_equal_beginnings_share_pages_and_are_not_run_again():
    scheduler = make_scheduler(pages=8, budget=64)
    first = make_sequence(2 * PAGE_SIZE + 3)
    scheduler.add(first)
    advance(scheduler.schedule())
    scheduler._cache.cache_tokens(first)
    second = make_sequence(2 * PAGE_SIZE + 3)
    scheduler.add(second)
    scheduled = next(scheduled for scheduled in scheduler.schedule() if scheduled.sequence is second)
    assert (scheduled.start, second.num_cached_tokens) == (2 * PAGE_SIZE, 2 * PAGE_SIZE)
    assert second.pages[:2] == first.pages[:2]
    assert second.pages[2] != first.pages[2]
    scheduler._cache.check()
    scheduler.remove(first)
    scheduler._cache.check()
    scheduler.remove(second)
    assert scheduler._cache.num_free_pages == 8


def test_another_root_hash_shares_nothing():
    scheduler = make_scheduler(pages=16, budget=128)
    first, second = make_sequence(2 * PAGE_SIZE + 3), make_sequence(2 * PAGE_SIZE + 3)
    second.root_hash = b"another task"
    scheduler.add(first)
    advance(scheduler.schedule())
    scheduler._cache.cache_tokens(first)
    scheduler.add(second)
    scheduler.schedule()
    assert second.num_cached_tokens == 0
    assert not set(first.pages) & set(second.pages)


def test_a_cached_page_is_evicted_when_its_room_is_needed():
    scheduler = make_scheduler(pages=3, budget=64)
    first = make_sequence(2 * PAGE_SIZE + 1)
    scheduler.add(first)
    advance(scheduler.schedule())
    scheduler._cache.cache_tokens(first)
    scheduler.remove(first)
    other = make_sequence(3 * PAGE_SIZE)
    other.root_hash = b"another task"
    scheduler.add(other)
    scheduler.schedule()
    scheduler._cache.check()
    assert other.num_computed_tokens == 0
    scheduler.remove(other)
    again = make_sequence(2 * PAGE_SIZE + 1)
    scheduler.add(again)
    scheduler.schedule()
    assert again.num_cached_tokens == 0
    scheduler._cache.check()
