"""Tenants, and within a tenant its groups, share places, cache and tokens of a step while another waits."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reference import assert_greedy, learned_prefix, make_request, tokens_of
from engine.test_engine import manual_engine, run_until_idle
from engine.test_scheduler import advance, make_scheduler, make_sequence
from foreword.engine.cache import PagedCache
from foreword.engine.job import Job
from foreword.engine.scheduler import PATIENCE, SETTLED_TOKENS, SHARED_TOKENS, Scheduler
from foreword.engine.sequence import Sequence
from tiny_models import tiny_model


def sent(tenant: str, length: int = 3, max_tokens: int = 4, group: str = "", text: int = 0) -> Sequence:
    found = make_sequence(length, max_tokens)
    found.request = replace(make_request(length, text, max_tokens=max_tokens), tenant=tenant, group=group)
    return found


def step(scheduler: Scheduler) -> list:
    """One step, as an engine does it; returns what was scheduled."""
    found = scheduler.schedule()
    advance(found)
    for each in found:
        scheduler._cache.cache_tokens(each.sequence)
        if len(each.sequence.output_token_ids) == each.sequence.request.sampling.max_tokens:
            scheduler.remove(each.sequence)
    scheduler._cache.check()
    return found


def steps_until_gone(scheduler: Scheduler, sequence: Sequence) -> int:
    count = 0
    while sequence in scheduler.sequences:
        assert step(scheduler), "nothing ran"
        count += 1
    return count


def held_by(scheduler: Scheduler, tenant: str) -> int:
    return sum(sequence.request.tenant == tenant for sequence in scheduler.running)


@pytest.mark.parametrize(("tenants", "groups"), [(("ann", "ben"), ("", "")), (("", ""), ("poet", "clerk"))])
def test_one_that_fills_all_places_gives_way(tenants, groups):
    scheduler = make_scheduler(pages=400, budget=256, batch=16)
    for index in range(48):
        scheduler.add(sent(tenants[0], max_tokens=100, group=groups[0], text=index))
    for _ in range(3):
        step(scheduler)
    assert len(scheduler.running) == 16
    late = [sent(tenants[1], group=groups[1], text=100 + index) for index in range(2)]
    for each in late:
        scheduler.add(each)
    assert [steps_until_gone(scheduler, each) for each in late] == [4, 0]
    step(scheduler)
    assert len(scheduler.running) == 16  # nobody waits: all places are taken again
    more = [sent(tenants[1], max_tokens=50, group=groups[1], text=200 + index) for index in range(30)]
    for each in more:
        scheduler.add(each)
    step(scheduler)
    assert sum(sequence in more for sequence in scheduler.running) == 8


def test_one_that_fills_the_cache_gives_way():
    scheduler = make_scheduler(pages=32, budget=512, batch=16)
    for index in range(8):
        scheduler.add(sent("ann", 60, 80, text=index))
    for _ in range(10):
        step(scheduler)
    assert scheduler._cache.num_free_pages < 4
    late = sent("ben", 60, text=99)
    scheduler.add(late)
    assert steps_until_gone(scheduler, late) == 4
    assert scheduler._visits, "the others go on"


def test_the_one_that_holds_most_is_preempted_when_the_cache_is_full():
    scheduler = make_scheduler(pages=16, budget=512, batch=8)
    for index in range(7):
        scheduler.add(sent("ann", 30, 60, text=index))
    step(scheduler)
    late = sent("ben", 30, 60, text=99)
    scheduler.add(late)
    while late in scheduler.sequences:
        assert any(each.sequence is late for each in step(scheduler)), "it was admitted last and held least"


def test_a_short_prompt_does_not_wait_for_long_ones_of_others():
    for tenants, groups in ((("ann", "ben"), ("", "")), (("", ""), ("poet", "clerk"))):
        scheduler = make_scheduler(pages=400, budget=32, batch=16)
        for index in range(10):
            scheduler.add(sent(tenants[0], 200, group=groups[0], text=index))
        step(scheduler)
        late = sent(tenants[1], 10, group=groups[1], text=99)
        scheduler.add(late)
        found = step(scheduler)
        assert [each.num_tokens for each in found if each.sequence is late] == [10]
        assert sum(each.num_tokens for each in found) == 32


def test_a_step_stays_short_while_one_asks_little():
    lm = tiny_model("llama")
    cache = PagedCache(lm.identity.layers, 4000, lm.dtype, lm.device)
    scheduler = Scheduler(cache, 512, 64, max_num_shared_tokens=SHARED_TOKENS)
    flood = [sent("ann", max_tokens=60, text=index) for index in range(63)]
    for each in flood:
        scheduler.add(each)
    assert len(step(scheduler)) == 63
    late = sent("ben", max_tokens=30, text=99)
    scheduler.add(late)
    step(scheduler)
    before = [len(each.output_token_ids) for each in flood]
    for _ in range(20):
        assert len(step(scheduler)) == SHARED_TOKENS + 1
    gained = {len(each.output_token_ids) - count for each, count in zip(flood, before, strict=True)}
    assert gained <= {4, 5, 6}, "its answers take turns"
    scheduler.remove(late)
    assert len(step(scheduler)) == 63


def test_a_tenant_of_many_groups_or_salts_has_one_share():
    scheduler = make_scheduler(pages=400, budget=256, batch=8)
    for index in range(40):
        scheduler.add(sent("ann", max_tokens=50, group=f"task {index}", text=index))
    step(scheduler)
    for index in range(8):
        scheduler.add(sent("ben", max_tokens=50, text=100 + index))
    step(scheduler)
    assert (held_by(scheduler, "ann"), held_by(scheduler, "ben")) == (4, 4)


def test_many_short_requests_do_not_starve_a_long_one():
    """It is preempted for others only as often as it gets on."""
    scheduler = make_scheduler(pages=40, budget=256, batch=4)
    long = [sent("ann", 20, 100, text=index) for index in range(4)]
    for each in long:
        scheduler.add(each)
    steps, asked = 0, 0
    while any(each in scheduler.sequences for each in long):
        if not held_by(scheduler, "ben") and steps < 5000:
            scheduler.add(sent("ben", 5, 2, text=1000 + asked))
            asked += 1
        step(scheduler)
        steps += 1
    assert steps < 100 * 4
    assert asked > steps / 4
    assert scheduler.num_preemptions <= 4 + 400 / SETTLED_TOKENS


def test_a_large_one_is_passed_over_a_bounded_number_of_times():
    scheduler = make_scheduler(pages=20, budget=512, batch=8)
    for index in range(6):
        scheduler.add(sent(f"tenant {index}", 40, 10, text=index))
    step(scheduler)
    large = sent("ann", 300, 2, text=500)
    scheduler.add(large)
    asked = 6
    while large in scheduler.sequences:
        while scheduler.num_waiting < 4:
            scheduler.add(sent(f"tenant {asked % 6}", 40, 10, text=asked))
            asked += 1
        step(scheduler)
        assert asked < PATIENCE + 40
    assert asked > 10


arrivals = st.tuples(
    st.integers(0, 20),
    st.sampled_from(["", "a", "b"]),
    st.sampled_from(["", "x"]),
    st.integers(1, 70),
    st.integers(1, 20),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    asked=st.lists(arrivals, min_size=1, max_size=14),
    pages=st.integers(6, 30),
    budget=st.integers(1, 60),
    batch=st.integers(1, 8),
    shared=st.sampled_from([None, 1, 4]),
)
def test_all_come_to_their_end_and_no_step_is_idle(asked, pages, budget, batch, shared):
    lm = tiny_model("llama")
    cache = PagedCache(lm.identity.layers, pages, lm.dtype, lm.device)
    scheduler = Scheduler(cache, budget, batch, max_num_shared_tokens=shared)
    work = sum(length + max_tokens for _, _, _, length, max_tokens in asked)
    now = 0
    while now <= 20 or scheduler.sequences:
        for index, (arrives, tenant, group, length, max_tokens) in enumerate(asked):
            if arrives == now:
                scheduler.add(sent(tenant, length, max_tokens, group, index))
        there = bool(scheduler.sequences)
        found = step(scheduler)
        assert bool(found) == there
        assert sum(each.num_tokens for each in found) <= budget
        assert len({each.sequence for each in found}) == len(found) <= batch
        now += 1
        assert now <= 21 + 4 * work, "somebody starves"
    assert cache.num_free_pages == pages


def test_answers_do_not_change_by_giving_way():
    engine = manual_engine("llama", pages=60, max_batch=6)
    prefix = learned_prefix("llama", 5)
    flood = [
        engine.submit(replace(make_request(9, seed, prefix, max_tokens=60), tenant="ann", cache_salt="ann"))
        for seed in range(12)
    ]
    for _ in range(30):
        engine.step()
    late = []
    for seed in range(6):
        late.append(engine.submit(replace(make_request(30, 50 + seed, max_tokens=4), tenant="ben")))
        for _ in range(5):  # its prompt takes two of them
            engine.step()
            engine.cache.check()
        assert list(late[-1])[-1].finish_reason == "length"  # it has ended
    run_until_idle(engine)
    assert engine.statistics()["preempted"] > 0
    for stream in flood:
        assert_greedy("llama", stream.request, tokens_of(stream))


def test_jobs_of_tenants_take_turns():
    engine = manual_engine("llama")
    order: list[str] = []
    for tenant, count in (("ann", 5), ("ben", 2), ("", 1)):
        engine._jobs.extend(tenant, [Job(lambda tenant=tenant: order.append(tenant)) for _ in range(count)])
    run_until_idle(engine)
    assert order == ["ann", "ben", "", "ann", "ben", "ann", "ann", "ann"]


def test_steps_have_as_much_time_as_jobs():
    engine = manual_engine("llama")
    engine.submit(make_request(3, max_tokens=200))
    stream = engine.submit(make_request(3, 1, max_tokens=200))
    generated: list[float] = []

    def job() -> None:
        generated.append(engine.statistics()["tokens_generated"])
        time.sleep(0.1)

    jobs = [Job(job) for _ in range(3)]
    engine._jobs.extend("ann", jobs)
    while len(generated) < 3:
        engine.step()
    assert generated[0] == 0
    assert generated[2] - generated[1] > 2, "more than one step"
    stream.cancel()
    run_until_idle(engine)
