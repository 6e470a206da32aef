"""Who runs in a step: room, budget, order."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reference import ask
from foreword.engine.cache import PAGE, PagedCache
from foreword.engine.scheduler import AGING, Scheduler
from foreword.engine.sequence import Sequence
from foreword.engine.stream import AnswerStream
from foreword.text.detokenize import Detokenizer
from models import tiny_model


def scheduler(pages: int = 8, budget: int = 32, batch: int = 4) -> Scheduler:
    lm = tiny_model("llama")
    return Scheduler(PagedCache(lm.identity.layers, pages, lm.dtype, lm.device), budget, batch)


def sequence(length: int, max_tokens: int = 4) -> Sequence:
    request = ask(length, max_tokens=max_tokens)
    stream = AnswerStream(request, lambda: None)
    return Sequence(request, None, None, Detokenizer(tiny_model("llama").tokenizer), weakref.ref(stream))


def advance(plan) -> None:
    for work in plan:
        work.sequence.computed = work.end
        if work.samples:
            work.sequence.generated.append(0)


def test_who_waits_longest_is_admitted_first_however_large():
    queue = scheduler(pages=4)
    small, large, late = sequence(20), sequence(60), sequence(1)
    for found in (small, large, late):
        queue.add(found)
    assert [work.sequence for work in queue.schedule()] == [small]
    queue.remove(small)
    assert [work.sequence for work in queue.schedule()] == [large]


def test_running_answers_come_before_prompts():
    queue = scheduler(budget=10)
    first, second = sequence(4), sequence(30)
    queue.add(first)
    advance(queue.schedule())
    queue.add(second)
    plan = queue.schedule()
    assert [(work.sequence, work.end - work.start, work.samples) for work in plan] == [
        (first, 1, True),
        (second, 9, False),
    ]


def test_a_request_of_one_token_does_not_wait_for_a_long_prompt():
    queue = scheduler(budget=10)
    queue.add(sequence(40))
    advance(queue.schedule())
    queue.add(sequence(1))
    assert [(work.end - work.start, work.samples) for work in queue.schedule()] == [(1, True), (9, False)]


def test_more_sequences_than_tokens_never_run_at_once():
    queue = scheduler(budget=2, batch=4)
    for _ in range(3):
        queue.add(sequence(1))
    assert len(queue.schedule()) == 2
    assert len(queue.waiting) == 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    asked=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=12),
    budget=st.integers(1, 40),
    batch=st.integers(1, 8),
)
def test_every_sequence_comes_to_its_end(asked, budget, batch):
    cache_pages = -(-80 // PAGE)
    queue = scheduler(cache_pages, budget, batch)
    for length, max_tokens in asked:
        queue.add(sequence(length, max_tokens))
    steps = 0
    while queue.sequences:
        plan = queue.schedule()
        queue._cache.check()
        assert 0 < sum(work.end - work.start for work in plan) <= budget
        assert len(plan) <= batch
        advance(plan)
        for work in plan:
            queue._cache.remember(work.sequence)
            if len(work.sequence.generated) == work.sequence.request.sampling.max_tokens:
                queue.remove(work.sequence)
        steps += 1
    assert steps <= sum(length + max_tokens for length, max_tokens in asked)
    assert queue._cache.free == cache_pages


def test_an_answer_without_a_reader_is_abandoned():
    request = ask(3)
    stream = AnswerStream(request, lambda: None)
    found = Sequence(request, None, None, Detokenizer(tiny_model("llama").tokenizer), weakref.ref(stream))
    assert not found.abandoned
    stream.cancel()
    assert found.abandoned
    stream.cancelled = False
    del stream
    gc.collect()
    assert found.abandoned


def test_the_table_repeats_what_was_written():
    queue = scheduler()
    short, long = sequence(3), sequence(40)
    queue.add(short)
    queue.add(long)
    queue.schedule()
    table = queue._cache.table([short, long], [2, 35], [0, 1])
    assert table.shape == (2, 34)
    assert table[0].tolist() == [short.rows[0]] + [short.rows[1]] * 33
    assert table[1].tolist() == long.rows[1:35].tolist()


def asked(length: int, priority: int = 0, group: str = "", max_tokens: int = 4) -> Sequence:
    found = sequence(length, max_tokens)
    found.request = replace(found.request, priority=priority, group=group)
    return found


def admitted(queue: Scheduler) -> list[Sequence]:
    """Who comes to run, in order, when one leaves after the other."""
    found = []
    while queue.sequences:
        queue.schedule()
        (running,) = queue.running
        found.append(running)
        queue.remove(running)
    return found


def test_higher_priorities_are_admitted_first():
    queue = scheduler(batch=1)
    low, high, middle = asked(3, 0), asked(3, 5), asked(3, 1)
    for found in (low, high, middle):
        queue.add(found)
    assert admitted(queue) == [high, middle, low]


def test_a_flood_of_one_task_does_not_starve_another():
    queue = scheduler(pages=64, batch=2)
    flood = [asked(3, group="flood") for _ in range(50)]
    for found in flood:
        queue.add(found)
    queue.schedule()
    assert queue.running == flood[:2]
    late = asked(3, group="small")
    queue.add(late)
    queue.remove(flood[0])
    queue.schedule()
    assert late in queue.running


def test_somebody_unimportant_comes_to_run_in_the_end():
    queue = scheduler(batch=1)
    low = asked(3, priority=-1)
    queue.add(low)
    for _ in range(3 * AGING):
        queue.add(asked(3, priority=1))
    assert admitted(queue).index(low) < AGING


def test_a_full_cache_takes_from_the_last_and_least_important():
    """Three prompts of a page each fill three pages; the first that needs a second page takes one."""
    queue = scheduler(pages=3, budget=64)
    first, important, last = asked(PAGE), asked(PAGE, 1), asked(PAGE)
    for found in (first, important, last):
        queue.add(found)
    advance(queue.schedule())
    assert len(queue.running) == 3
    plan = queue.schedule()
    assert last not in queue.running
    assert queue.waiting == [first, last]
    assert [(s.computed, s.pages) for s in queue.waiting] == [(0, [])] * 2
    # The other two want a page each, and there is one: the less important gives way.
    assert [work.sequence for work in plan] == [important]
    assert queue.preempted == 2
    queue._cache.check()


def test_equal_beginnings_share_pages_and_are_not_run_again():
    queue = scheduler(pages=8, budget=64)
    first = sequence(2 * PAGE + 3)
    queue.add(first)
    advance(queue.schedule())
    queue._cache.remember(first)
    second = sequence(2 * PAGE + 3)
    queue.add(second)
    work = next(work for work in queue.schedule() if work.sequence is second)
    assert (work.start, second.reused) == (2 * PAGE, 2 * PAGE)
    assert second.pages[:2] == first.pages[:2]
    assert second.pages[2] != first.pages[2]
    queue._cache.check()
    queue.remove(first)
    queue._cache.check()
    queue.remove(second)
    assert queue._cache.free == 8


def test_another_root_shares_nothing():
    queue = scheduler(pages=16, budget=128)
    first, second = sequence(2 * PAGE + 3), sequence(2 * PAGE + 3)
    second.root = b"another task"
    queue.add(first)
    advance(queue.schedule())
    queue._cache.remember(first)
    queue.add(second)
    queue.schedule()
    assert second.reused == 0
    assert not set(first.pages) & set(second.pages)


def test_a_known_page_is_given_away_when_its_place_is_needed():
    queue = scheduler(pages=3, budget=64)
    first = sequence(2 * PAGE + 1)
    queue.add(first)
    advance(queue.schedule())
    queue._cache.remember(first)
    queue.remove(first)
    other = sequence(3 * PAGE)
    other.root = b"another task"
    queue.add(other)
    queue.schedule()
    queue._cache.check()
    assert other.computed == 0
    queue.remove(other)
    again = sequence(2 * PAGE + 1)
    queue.add(again)
    queue.schedule()
    assert again.reused == 0
    queue._cache.check()
