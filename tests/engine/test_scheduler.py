"""Who runs in a step: room, budget, order."""

from __future__ import annotations

import gc
import weakref

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reference import ask
from foreword.engine.cache import PAGE, PagedCache
from foreword.engine.scheduler import Scheduler
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
    table = queue._cache.table([short, long], [2, 35], torch.device("cpu"))
    assert table.shape == (2, 35)
    assert table[0].tolist() == queue._cache.rows(short, 0, 2) + queue._cache.rows(short, 1, 2) * 33
    assert table[1].tolist() == queue._cache.rows(long, 0, 35)
