"""The engine on models that are run through Transformers' cache: greedy tokens of plain Transformers, whatever runs
beside them."""

import random

import pytest
import torch

from foreword.core import KVPrefix, SamplingParams
from foreword.engine.cache import PAGE_SIZE, PagedCache
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.prompts.lower import lower_tokens
from tiny_cached_models import CONFIGS, tiny_cached_model

ANSWER = 8
GREEDY = SamplingParams(max_tokens=ANSWER, ignore_eos=True)


def tokens(length: int, source: random.Random) -> list[int]:
    return source.choices(range(5, 250), k=length)


@torch.no_grad()
def expected(lm, ids: list[int]) -> list[int]:
    """Greedy tokens behind a text, each from the whole text, by Transformers alone."""
    answer: list[int] = []
    for _ in range(ANSWER):
        logits = lm.model(torch.tensor([[*ids, *answer]]), use_cache=False).logits[0, -1]
        answer.append(int(logits.argmax()))
    return answer


def mixed_requests(lm, count: int, prefixes: int) -> tuple[list[Request], list[list[int]]]:
    """Requests of many lengths behind several prefixes, and their whole texts."""
    source = random.Random(7)
    fronts = [tokens(source.choice((2, 3, 9, 17, 33)), source) for _ in range(prefixes)]
    kept: list[KVPrefix] = [lower_tokens(lm, front) for front in fronts]
    requests, texts = [], []
    for index in range(count):
        own, front = tokens(source.choice((1, 1, 2, 5, 12, 30)), source), index % (prefixes + 1)
        behind = front < prefixes
        requests.append(
            Request(tuple(own), kept[front] if behind else None, kept[front].length if behind else 0, GREEDY)
        )
        texts.append([*(fronts[front] if behind else []), *own])
    return requests, texts


def answers(engine: Engine, requests: list[Request]) -> list[list[int]]:
    return [[token for chunk in chunks for token in chunk.token_ids] for chunks in engine.generate(requests)]


@pytest.mark.parametrize("family", ["bloom", "lfm2", "mamba", "falcon_h1"])
def test_mixed_requests(family):
    """In chunks of prompts, with more requests than run at a time."""
    lm = tiny_cached_model(family)
    requests, texts = mixed_requests(lm, 14, 4)
    with Engine(lm, cache_bytes=1 << 24, step_tokens=20, max_batch=6) as engine:
        assert answers(engine, requests) == [expected(lm, text) for text in texts]


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_sixty_requests_behind_twelve_prefixes(family):
    lm = tiny_cached_model(family)
    requests, texts = mixed_requests(lm, 60, 12)
    wanted = [expected(lm, text) for text in texts]
    with Engine(lm, cache_bytes=1 << 26) as engine:
        assert answers(engine, requests) == wanted


@pytest.mark.parametrize("family", ["bloom", "falcon_h1"])
def test_preempted_requests_start_again(family):
    lm = tiny_cached_model(family)
    requests, texts = mixed_requests(lm, 10, 2)
    page = PagedCache.bytes_per_page(lm.identity.layers, lm.dtype)
    with Engine(lm, cache_bytes=9 * page, step_tokens=64) as engine:
        assert answers(engine, requests) == [expected(lm, text) for text in texts]
        assert engine.statistics()["preempted"] > 0
        engine.cache.check()


def test_pages_of_tokens_are_reused_without_states_and_only_there():
    """Keys of a page say all; of a model with states the states at its end would be missing."""
    reused = {}
    for family in ("bloom", "lfm2"):
        lm = tiny_cached_model(family)
        text = tokens(3 * PAGE_SIZE, random.Random(1))
        requests = [Request((*text, last), None, 0, GREEDY) for last in (7, 8)]
        with Engine(lm, cache_bytes=1 << 24) as engine:
            for request in requests:
                assert answers(engine, [request]) == [expected(lm, list(request.token_ids))]
            reused[family] = engine.statistics()["tokens_reused"]
    assert reused == {"bloom": 3 * PAGE_SIZE, "lfm2": 0}


def test_a_text_is_prefilled_in_chunks():
    lm = tiny_cached_model("falcon_h1")
    text = tokens(23, random.Random(2))
    with Engine(lm, cache_bytes=1 << 24, step_tokens=10, max_batch=4) as engine:
        found = engine.prefill(text)
    for mine, theirs in zip(found.tensors, lower_tokens(lm, text).tensors, strict=True):
        torch.testing.assert_close(mine, theirs, atol=3e-5, rtol=0)


def test_states_that_run_together_are_not_copied():
    """The rows of the last batch are the next one's, until the sequences change."""
    lm = tiny_cached_model("lfm2")
    requests = [Request(tuple(tokens(4, random.Random(n))), None, 0, GREEDY) for n in range(3)]
    with Engine(lm, cache_bytes=1 << 24, start=False) as engine:
        streams = [engine.submit(request) for request in requests]
        engine.step()
        engine.step()
        rows = [sequence.states for sequence in engine.scheduler.running]
        assert len({id(row.batch) for row in rows}) == 1
        assert sorted(row.index for row in rows) == [0, 1, 2]
        streams[1].cancel()
        while engine.step():
            pass
        found = [[token for chunk in stream for token in chunk.token_ids] for stream in (streams[0], streams[2])]
    assert found == [expected(lm, list(requests[index].token_ids)) for index in (0, 2)]
