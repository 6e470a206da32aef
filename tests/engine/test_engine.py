"""Greedy answers of any mix of requests equal each request alone through plain Transformers, step by step."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reference import (
    assert_greedy,
    greedy_reference,
    learned_prefix,
    make_request,
    random_ids,
    static_prefix,
    tokens_of,
)
from foreword.core import SamplingParams
from foreword.engine.cache import PAGE_SIZE, PagedCache
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import EngineBusy
from foreword.models.ways import wrap_model
from tiny_models import CAUSAL, FURTHER, tiny_model

# The windows of the tiny Mistral (6) and Gemma 3 (8) are shorter than the longer prefixes and longer than the others.
SHORT, LONG = 3, 21


def manual_engine(family: str, pages: int = 64, **limits) -> Engine:
    """An engine without a thread: the test calls `step`."""
    lm = tiny_model(family)
    cache_bytes = pages * PagedCache.bytes_per_page(lm.identity.layers, lm.dtype)
    return Engine(lm, cache_bytes=cache_bytes, start=False, **limits)


def run_until_idle(engine: Engine) -> None:
    while engine.step():
        engine.cache.check()


def prefix_uses(family: str):
    """Prefixes with how much of them is used."""
    whole = [
        learned_prefix(family, SHORT),
        learned_prefix(family, LONG, 1),
        static_prefix(family, LONG),
        static_prefix(family, SHORT, 1),
    ]
    return [(None, 0), *((prefix, prefix.length) for prefix in whole), (static_prefix(family, LONG), 2)]


@pytest.mark.parametrize("family", CAUSAL + FURTHER)
def test_a_mix_of_requests_equals_greedy_decoding_one_by_one(family):
    engine = manual_engine(family)
    requests = [
        Request(random_ids(length, length), prefix, used, SamplingParams(max_tokens=12, ignore_eos=True))
        for prefix, used in prefix_uses(family)
        for length in (1, 19)
    ]
    streams = [engine.submit(request) for request in requests]
    run_until_idle(engine)
    answers = [tokens_of(stream) for stream in streams]
    for request, answer in zip(requests, answers, strict=True):
        whole = request.prefix is None or request.prefix_length == request.prefix.length
        if whole:
            assert answer == greedy_reference(family, request)
        assert_greedy(family, request, answer)
    pairs = {(tuple(one), tuple(other)) for one, other in zip(answers[::2], answers[1::2], strict=True)}
    assert len(pairs) == len(prefix_uses(family)), "a prefix made no difference"


@dataclass(frozen=True)
class Visit:
    """A request of a mix: when it comes, what it asks, and when it is cancelled; those of one talk begin alike."""

    arrives: int
    length: int
    front: int
    max_tokens: int
    leaves: int | None
    talk: int
    tenant: str


visits = st.builds(
    Visit,
    arrives=st.integers(0, 10),
    length=st.integers(1, 40),
    front=st.integers(0, 5),
    max_tokens=st.integers(1, 14),
    leaves=st.none() | st.integers(0, 14),
    talk=st.integers(0, 1),
    tenant=st.sampled_from("ab"),
)


@pytest.mark.parametrize("family", CAUSAL + FURTHER)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    mix=st.lists(visits, min_size=1, max_size=7),
    pages=st.integers(6, 14),
    step_tokens=st.integers(1, 40),
    max_batch=st.integers(1, 6),
)
def test_any_mix_with_any_limits(family, mix, pages, step_tokens, max_batch):
    engine = manual_engine(family, pages, step_tokens=step_tokens, max_batch=max_batch)
    known = prefix_uses(family)
    requests = [
        Request(
            random_ids(40, v.talk)[: v.length],
            *known[v.front],
            SamplingParams(max_tokens=v.max_tokens),
            tenant=v.tenant,
        )
        for v in mix
    ]
    streams = {}
    now, busy = 0, True
    while busy or now <= 14:
        for index, visit in enumerate(mix):
            if visit.arrives == now:
                streams[index] = engine.submit(requests[index])
            if visit.leaves == now and index in streams:
                streams[index].cancel()
        busy = engine.step()
        engine.cache.check()
        assert now < 2000, "the engine does not come to an end"
        now += 1
    for index, stream in streams.items():
        check_answer(family, requests[index], list(stream), cancelled=stream.cancelled)
    assert engine.cache.num_free_pages == engine.cache.num_pages == pages
    assert not engine.scheduler.sequences


def check_answer(family, request, chunks, cancelled):
    tokens, reason = tokens_of(chunks), chunks[-1].finish_reason
    if tokens:
        assert_greedy(family, request, tokens)
    ended = [token in tiny_model(family).eos_token_ids for token in tokens]
    if reason == "stop":
        assert ended.index(True) == len(tokens) - 1
    elif reason == "length":
        assert len(tokens) == request.sampling.max_tokens
        assert not any(ended)
    else:
        assert reason == "cancelled"
        assert cancelled
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])


def test_a_long_prompt_in_chunks_does_not_stall_running_answers():
    engine = manual_engine("llama", step_tokens=8)
    answering = engine.submit(make_request(2, max_tokens=20))
    engine.step()
    long = engine.submit(make_request(60, 1, learned_prefix("llama", LONG), max_tokens=2))
    for _ in range(5):
        before = engine.statistics()["tokens_generated"]
        engine.step()
        assert engine.statistics()["tokens_generated"] == before + 1
    run_until_idle(engine)
    for stream in (answering, long):
        assert_greedy("llama", stream.request, tokens_of(stream))


def test_cancelling_frees_everything_at_the_next_step():
    engine = manual_engine("llama", pages=4, max_batch=1)
    running, waiting = engine.submit(make_request(30, max_tokens=20)), engine.submit(make_request(30, 1, max_tokens=20))
    engine.step()
    assert engine.cache.num_free_pages == 2
    running.cancel()
    waiting.cancel()
    assert not engine.step()
    assert engine.cache.num_free_pages == 4
    assert [list(stream)[-1].finish_reason for stream in (running, waiting)] == ["cancelled"] * 2
    assert engine.statistics()["cancelled"] == 2


def test_an_answer_cancelled_while_it_runs_takes_no_further_token():
    engine = manual_engine("llama")
    stream = engine.submit(make_request(5, max_tokens=3))
    engine.step()
    stream.cancel()
    run_until_idle(engine)
    assert len(tokens_of(stream)) == 1


def test_an_answer_whose_stream_is_collected_is_cancelled():
    engine = manual_engine("llama")
    engine.submit(make_request(5, max_tokens=100))
    kept = engine.submit(make_request(5, 1, max_tokens=4))
    run_until_idle(engine)
    assert engine.statistics()["cancelled"] == 1
    assert_greedy("llama", kept.request, tokens_of(kept))
    assert engine.cache.num_free_pages == engine.cache.num_pages


def test_recycled_pages_leak_nothing():
    """Pages full of NaN, as a broken request may leave them, do not reach the next request."""
    engine = manual_engine("mistral", pages=4)
    for tensor in (*engine.cache.keys, *engine.cache.values):
        tensor.fill_(torch.nan)
    streams = [
        engine.submit(make_request(length, length, learned_prefix("mistral", LONG), max_tokens=6)) for length in (3, 9)
    ]
    run_until_idle(engine)
    for stream in streams:
        answer = tokens_of(stream)
        assert len(answer) == 6
        assert_greedy("mistral", stream.request, answer)


def test_requests_behind_different_prefixes_see_only_their_own():
    """The same request behind every prefix at once, and again when the neighbours have changed."""
    engine = manual_engine("llama")
    prefixes = [None, *(learned_prefix("llama", length, seed) for seed, length in enumerate((2, 9, 9, 30)))]
    alone = [greedy_reference("llama", make_request(6, 0, prefix)) for prefix in prefixes]
    assert len({tuple(answer) for answer in alone}) == len(prefixes)
    for order in ([0, 1, 2, 3, 4], [4, 2, 2, 0], [3, 1]):
        streams = [engine.submit(make_request(6, 0, prefixes[index])) for index in order]
        run_until_idle(engine)
        assert [tokens_of(stream) for stream in streams] == [alone[index] for index in order]


def test_a_prefix_is_freed_with_its_last_holder():
    import gc
    import weakref

    engine = manual_engine("llama")
    prefix = learned_prefix.__wrapped__("llama", 5, 9)
    seen = weakref.ref(prefix)
    stream = engine.submit(make_request(4, 0, prefix))
    run_until_idle(engine)
    assert tokens_of(stream)
    del prefix, stream
    gc.collect()
    assert seen() is None


def test_statistics():
    engine = manual_engine("llama", step_tokens=4)
    streams = [engine.submit(make_request(6, seed, max_tokens=3)) for seed in range(2)]
    assert engine.statistics()["waiting"] == 2
    engine.step()
    found = engine.statistics()
    assert (found["waiting"], found["running"], found["tokens_run"]) == (0, 2, 4)
    assert found["pages"] - found["free_pages"] == 2 * -(-8 // PAGE_SIZE)
    run_until_idle(engine)
    found = engine.statistics()
    assert (found["requests"], found["tokens_generated"], found["running"]) == (2, 6, 0)
    assert found["tokens_run"] == 2 * (6 + 3 - 1)
    assert all(list(stream)[-1].finish_reason == "length" for stream in streams)


def test_more_than_may_wait_are_refused_at_once():
    engine = manual_engine("llama", max_waiting=2)
    kept = [engine.submit(make_request(4, seed)) for seed in range(2)]
    with pytest.raises(EngineBusy, match="2 requests are waiting already"):
        engine.submit(make_request(4, 2))
    run_until_idle(engine)
    again = engine.submit(make_request(4, 2))
    run_until_idle(engine)
    for stream in (*kept, again):
        assert_greedy("llama", stream.request, tokens_of(stream))


@pytest.mark.parametrize("prefix", [None, SHORT, LONG])
def test_a_conversation_runs_only_its_new_tokens(prefix):
    engine = manual_engine("llama", pages=32)
    front = learned_prefix("llama", prefix) if prefix else None
    first = engine.submit(make_request(2 * PAGE_SIZE, 0, front, max_tokens=2 * PAGE_SIZE))
    run_until_idle(engine)
    said = (*first.request.token_ids, *tokens_of(first))
    before = engine.statistics()["tokens_run"]
    used = front.length if front else 0
    second = engine.submit(Request((*said, *random_ids(3, 7)), front, used, SamplingParams(max_tokens=1)))
    run_until_idle(engine)
    # The last token of an answer is never run, so its page is not full.
    assert engine.statistics()["tokens_run"] - before == PAGE_SIZE + 3
    assert engine.statistics()["tokens_reused"] == 3 * PAGE_SIZE
    assert_greedy("llama", second.request, tokens_of(second))


def test_the_same_words_behind_another_prefix_are_run_again():
    engine = manual_engine("llama", pages=32)
    for seed in range(3):
        stream = engine.submit(make_request(3 * PAGE_SIZE, 0, learned_prefix("llama", SHORT, seed), max_tokens=3))
        run_until_idle(engine)
        assert_greedy("llama", stream.request, tokens_of(stream))
    assert engine.statistics()["tokens_reused"] == 0


def test_preemption_does_not_change_answers():
    engine = manual_engine("llama", pages=6)
    streams = [engine.submit(make_request(PAGE_SIZE, seed, max_tokens=3 * PAGE_SIZE)) for seed in range(3)]
    run_until_idle(engine)
    assert engine.statistics()["preempted"] > 0
    for stream in streams:
        answer = tokens_of(stream)
        assert len(answer) == 3 * PAGE_SIZE
        assert_greedy("llama", stream.request, answer)


def test_weights_that_change_are_asked_without_reuse():
    known = tiny_model("llama")
    lm = wrap_model(copy.deepcopy(known.model), known.tokenizer, name="changing")
    answers = []
    with Engine(lm, cache_bytes=1 << 20, reuse=False) as engine, Engine(lm, cache_bytes=1 << 20, reuse=False) as fresh:
        asked = make_request(3 * PAGE_SIZE, max_tokens=8)
        answers.append(tokens_of(engine.submit(asked)))
        with torch.no_grad():
            lm.model.model.layers[0].self_attn.k_proj.weight.mul_(-3.0)
        answers += [tokens_of(each.submit(asked)) for each in (engine, fresh)]
    assert answers[1] == answers[2] != answers[0]


@pytest.mark.parametrize("sharing", [2, 12])
@pytest.mark.parametrize("length", [5, 20, 21])
def test_prefixes_in_pages_or_not_read_once_or_with_each(length, sharing, monkeypatch):
    monkeypatch.setattr("foreword.engine.cache.MAX_PAGED_PREFIX", 20)
    monkeypatch.setattr("foreword.engine.paged_attention.MAX_GATHERED_KEYS", 4 * length)
    engine = manual_engine("qwen3", pages=64)
    prefixes = [learned_prefix("qwen3", length, seed) for seed in range(2)]
    streams = [engine.submit(make_request(2 + seed, seed, prefixes[seed % 2], max_tokens=5)) for seed in range(sharing)]
    run_until_idle(engine)
    for stream in streams:
        assert_greedy("qwen3", stream.request, tokens_of(stream))


@pytest.mark.parametrize("pooled", [0, 256])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
def test_prompts_in_pieces_with_prefixes_and_answers_beside_them(name, pooled, monkeypatch):
    monkeypatch.setattr("foreword.engine.paged_attention.QUERY_CHUNK", 3)
    monkeypatch.setattr("foreword.engine.cache.MAX_PAGED_PREFIX", pooled)
    engine = manual_engine(name, pages=64)
    prefixes = [learned_prefix(name, 7, 1), learned_prefix(name, 6, 2), None]
    streams = [
        engine.submit(make_request(length, length, prefixes[length % 3], max_tokens=5))
        for length in (1, 2, 3, 4, 11, 13, 17)
    ]
    run_until_idle(engine)
    for stream in streams:
        assert_greedy(name, stream.request, tokens_of(stream))
