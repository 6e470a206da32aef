"""The engine beside the embedded one: the same tokens, scores and endings, whatever else happens in its cache."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("llama_cpp", reason="needs llama.cpp: make test-llamacpp")

from foreword.core import Adapter, Constraint, KVPrefix, LowRank, SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import EngineBusy, EngineError, PromptTooLong, RequestError, UnsupportedModel
from foreword.text.label_scorers import HeadScorer, WordScorer
from foreword.text.request import Prompt, from_ids
from foreword.text.verbalizer import WordTrie
from on_llamacpp.model_fixtures import CLOSE, IDS, asked, check_answers, edge_tasks, gguf_house, llamacpp_engine
from on_vllm.model_fixtures import CACHE_BYTES, tokens

TRIE = WordTrie.build([(0, (40,)), (0, (41, 42)), (1, (41, 43, 44)), (2, (50,))], 3)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_mixed_requests_get_the_embedded_engine_s_tokens(family, half, tmp_path):
    own = gguf_house(family, tmp_path, half=half)
    requests = own.requests(100)
    assert len({id(request.prefix) for request in requests}) > 20
    with llamacpp_engine(own, cells=2048) as engine:
        assert engine.order.interleaved == (family == "llama")
        check_answers(own, requests, tokens(engine, requests), ties=0.1 if half else 0)
        assert engine.statistics()["prefixes_written"] >= 20
        engine.cells.check()


def test_a_lost_or_wrong_prefix_would_show(house, engine):
    """The comparison above can fail: without their prefixes nearly all answers are others."""
    requests = [request for request in house.requests(40) if request.prefix is not None]
    bare = [replace(request, prefix=None, prefix_length=0) for request in requests]
    with pytest.raises(AssertionError, match="answers differ"):
        check_answers(house, requests, tokens(engine, bare))


def test_prefixes_read_without_pytorch_are_the_same(house, engine):
    plain = edge_tasks(house)
    assert [task.prefix.digest for task in plain] == [task.prefix.digest for task in house.tasks]
    assert all(isinstance(task.prefix.keys[0], np.ndarray) for task in plain)
    mine, theirs = ([asked(task) for task in tasks] for tasks in (plain, house.tasks))
    assert tokens(engine, mine) == tokens(engine, theirs)


def test_a_prefix_lies_in_the_cache_once(house, engine):
    task = house.publish("shared", 102, length=96)
    before = engine.statistics()["prefixes_written"]
    requests = [asked(task, (7, 8, token)) for token in range(9, 29)]
    check_answers(house, requests, tokens(engine, requests))
    assert engine.statistics()["prefixes_written"] == before + 1


def test_any_part_of_a_static_prefix_is_exact(house, engine):
    whole = next(task for task in house.tasks if task.prefix.token_ids and task.prefix.length > 64)
    lengths = (1, 32, 39, whole.prefix.length)
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)
    requests = [Request(IDS, whole.prefix, length, sampling) for length in lengths]
    check_answers(house, requests, tokens(engine, requests))


def test_long_requests_are_run_in_pieces(house, engine):
    draw = random.Random(8)
    requests = [
        asked(task, [draw.randrange(250) for _ in range(150)])  # a step runs 64 tokens
        for task in (*house.tasks[::3], None)
    ]
    check_answers(house, requests, tokens(engine, requests))


def test_requests_that_must_give_way_go_on_rightly(house, engine):
    requests = [
        replace(each, sampling=SamplingParams(max_tokens=60, ignore_eos=True)) for each in house.requests(24, seed=3)
    ]
    before = engine.statistics()["preempted"]
    check_answers(house, requests, tokens(engine, requests))
    assert engine.statistics()["preempted"] > before


def test_a_new_version_answers_as_itself(house, engine):
    old = house.publish("renewed", 103, length=64)
    first = tokens(engine, [asked(old)])
    new = house.publish("renewed", 104, length=64)
    found = [tokens(engine, [asked(task)])[0] for task in (new, old)]
    assert found == house.expected([asked(new), asked(old)])
    assert found[1] == first[0] != found[0]


def test_nobody_sees_another_s_prefix_whatever_happens_meanwhile(house, engine):
    """Readers in threads, half of whom go away, while prefixes are written, shared and thrown out."""
    requests = house.requests(120, seed=21, tokens=16)
    found: dict[int, list[int]] = {}
    errors: list[BaseException] = []

    def read(mine: list[int], seed: int) -> None:
        draw = random.Random(seed)
        try:
            for index in mine:
                stream = engine.submit(requests[index])
                if draw.random() < 0.5:
                    chunks = iter(stream)
                    for _ in range(draw.randrange(3)):
                        next(chunks)
                    stream.cancel()
                    continue
                found[index] = [token for chunk in stream for token in chunk.token_ids]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(list(range(n, 120, 8)), n)) for n in range(8)]
    before = engine.statistics()
    for thread in threads:
        thread.start()
    prompts = [from_ids(task, IDS) for task in house.tasks]
    scores = engine.score(prompts, WordScorer(TRIE))
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert len(found) > 30
    order = sorted(found)
    check_answers(house, [requests[i] for i in order], [found[i] for i in order])
    with Engine(house.lm, cache_bytes=CACHE_BYTES) as embedded:
        np.testing.assert_allclose(scores, embedded.score(prompts, WordScorer(TRIE)), atol=CLOSE)
    wait_until_empty(engine)
    after = engine.statistics()
    assert after["cancelled"] > before["cancelled"]
    assert after["prefixes_written"] - before["prefixes_written"] > len(house.tasks)  # some more than once
    assert after["failed"] == before["failed"]


def wait_until_empty(engine) -> None:
    end = time.monotonic() + 20
    while engine.statistics()["running"] or engine.statistics()["waiting"]:
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_words_are_scored_as_by_the_embedded_engine(house, engine):
    draw = random.Random(5)
    prompts = [from_ids(draw.choice([*house.tasks, None]), [draw.randrange(250) for _ in range(9)]) for _ in range(40)]
    with Engine(house.lm, cache_bytes=CACHE_BYTES) as embedded:
        expected = embedded.score(prompts, WordScorer(TRIE))
        bare = embedded.score([from_ids(None, prompt.token_ids) for prompt in prompts], WordScorer(TRIE))
    found = engine.score(prompts, WordScorer(TRIE))
    np.testing.assert_allclose(found, expected, atol=CLOSE)
    assert np.abs(np.asarray(bare) - found).max() > 0.3
    assert engine.score([], WordScorer(TRIE)).shape == (0, 3)


def test_prompts_are_read_behind_learned_prefixes_too(house, engine):
    draw = random.Random(6)
    prompts = [from_ids(task, [draw.randrange(250) for _ in range(90)]) for task in (*house.tasks[:8], None)]
    prompts = [replace(prompt, places=()) for prompt in (*prompts, from_ids(None, (5,)))]
    prompts.append(replace(from_ids(None, (5, 6, 7)), places=(1,)))
    with Engine(house.lm, cache_bytes=CACHE_BYTES) as embedded:
        expected = embedded.token_logprobs(prompts)
        top = embedded.prompt_logprobs(prompts[2], 3)
    for mine, theirs in zip(engine.token_logprobs(prompts), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=CLOSE)
    found = engine.prompt_logprobs(prompts[2], 3)
    assert [each.token_id for each in found] == [each.token_id for each in top]
    for mine, theirs in zip(found, top, strict=True):
        assert [value for _, value in mine.top] == pytest.approx([value for _, value in theirs.top], abs=CLOSE)


def test_soft_tokens_inside_a_request_are_its_own(house, engine):
    spread = float(house.lm.model.get_input_embeddings().weight.std())
    draw = torch.Generator().manual_seed(3)
    requests = []
    for task in [*house.tasks[:6], None]:
        soft = torch.randn(3, house.lm.identity.hidden_size, generator=draw) * spread
        ids = (5, -1, 17, -3, -2, *range(40, 120))  # more than a step
        requests.append(replace(asked(task), token_ids=ids, soft=soft))
    requests.append(replace(requests[0], token_ids=(5, 9, -1)))
    check_answers(house, requests, tokens(engine, requests))
    others = [replace(request, soft=-request.soft) for request in requests]
    assert tokens(engine, others) != tokens(engine, requests)
    prompts = [Prompt(r.token_ids[:9], r.prefix, r.prefix_length, soft=r.soft) for r in requests]
    with Engine(house.lm, cache_bytes=CACHE_BYTES) as embedded:
        expected = embedded.score(prompts, WordScorer(TRIE))
    np.testing.assert_allclose(engine.score(prompts, WordScorer(TRIE)), expected, atol=CLOSE)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.7, "top_p": 0.9, "seed": 3},
        {"temperature": 0.7, "top_k": 20, "min_p": 0.05, "seed": 4},
        {"repetition_penalty": 1.7, "max_tokens": 20},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5, "max_tokens": 20},
        {"logit_bias": {7: 4.0, 9: -9.0}, "min_tokens": 3, "ignore_eos": False},
    ],
    ids=lambda sampling: "-".join(sampling),
)
def test_options_mean_what_they_mean_to_the_embedded_engine(house, engine, sampling):
    requests = [asked(task, **sampling) for task in house.tasks[:12]]
    mine, theirs = tokens(engine, requests), house.expected(requests)
    assert mine == theirs
    assert mine != tokens(engine, [asked(task) for task in house.tasks[:12]])


def test_a_seeded_answer_is_the_same_alone_and_in_a_crowd(house, engine):
    request = asked(house.tasks[4], temperature=1.0, seed=7, max_tokens=20)
    alone = tokens(engine, [request])[0]
    assert tokens(engine, [*house.requests(8, seed=9), request])[-1] == tokens(engine, [request])[0] == alone


def test_logprobs_are_the_model_s_own(house, engine):
    request = asked(house.tasks[3], logprobs=3)
    found = [each for chunk in engine.submit(request) for each in chunk.logprobs]
    with Engine(house.lm, cache_bytes=CACHE_BYTES) as embedded:
        expected = [each for chunk in embedded.submit(request) for each in chunk.logprobs]
    assert [each.token_id for each in found] == [each.token_id for each in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=CLOSE)


def test_stop_texts_and_ends(house, engine):
    free = tokens(engine, [asked(house.tasks[5], max_tokens=12)])[0]
    text = house.lm.tokenizer.decode(free)
    for request in (
        asked(house.tasks[5], max_tokens=12, stop=(text[3:5],)),
        asked(house.tasks[5], max_tokens=12, stop_token_ids=(free[4],)),
        asked(house.tasks[5], max_tokens=12, ignore_eos=False, logit_bias={256: 90.0}),
    ):
        chunks = list(engine.submit(request))
        with Engine(house.lm, cache_bytes=CACHE_BYTES) as embedded:
            expected = list(embedded.submit(request))
        assert "".join(chunk.text for chunk in chunks) == "".join(chunk.text for chunk in expected)
        assert chunks[-1].finish_reason == expected[-1].finish_reason == "stop"


def test_constraints_are_kept(house, engine):
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 9, "minimum": 0}},
              "required": ["age"], "additionalProperties": False}  # fmt: skip
    for constraint, fits in (
        (Constraint.choice(["yes", "no"]), lambda text: text in ("yes", "no")),
        (Constraint.json_schema(schema), lambda text: 0 <= json.loads(text)["age"] <= 9),
    ):
        request = asked(house.tasks[3], constraint=constraint, ignore_eos=False, max_tokens=60)
        assert fits("".join(chunk.text for chunk in engine.submit(request)))


def test_what_is_scored_gets_room_while_others_run(house, engine):
    """Prefixes of what runs fill the cache; a scoring that needs more waits, and nobody overtakes it for ever."""
    task = house.publish("wide", 105, length=400)
    streams = [engine.submit(asked(task, max_tokens=100)), engine.submit(asked(house.tasks[-1], max_tokens=100))]
    other = house.publish("other-wide", 106, length=500)
    found = engine.score([from_ids(other, IDS)], WordScorer(TRIE))
    with Engine(house.lm, cache_bytes=CACHE_BYTES) as embedded:
        np.testing.assert_allclose(found, embedded.score([from_ids(other, IDS)], WordScorer(TRIE)), atol=CLOSE)
    assert all(list(stream)[-1].finish_reason == "length" for stream in streams)


def test_what_can_never_run_is_refused(house, engine):
    wide = house.lm.identity.hidden_size
    adapter = Adapter({"model.layers.0.self_attn.q_proj": LowRank(torch.zeros(1, wide), torch.zeros(wide, 1))})
    with pytest.raises(RequestError, match="LoRA"):
        engine.submit(replace(asked(house.tasks[0]), adapter=adapter))
    with pytest.raises(RequestError, match="LoRA"):
        engine.score([Prompt(IDS, None, 0, adapter=adapter)], WordScorer(TRIE))
    with pytest.raises(UnsupportedModel, match="heads are not read"):
        engine.score([Prompt(IDS, None, 0)], HeadScorer(torch.zeros(2, wide), torch.zeros(2)))
    with pytest.raises(UnsupportedModel, match="computes no prefix"):
        engine.prefill(IDS)
    with pytest.raises(PromptTooLong, match="context of 512"):
        engine.submit(asked(house.tasks[0], max_tokens=512))


def test_a_prefix_that_float16_does_not_hold_is_refused(half_house):
    short = half_house.tasks[3].prefix
    keys = (short.keys[0] * 1e6, *short.keys[1:])
    with llamacpp_engine(half_house, cells=256) as engine, pytest.raises(RequestError, match=r"beyond 65,504"):
        engine.submit(asked(replace(half_house.tasks[3], prefix=replace(short, keys=keys))))


def test_a_prefix_and_request_beyond_the_cache_are_refused(house):
    with (
        llamacpp_engine(house, cells=256) as engine,
        pytest.raises(PromptTooLong, match=r"the context of 256|positions of the cache"),
    ):
        engine.submit(asked(house.tasks[-1]))


def test_too_many_wait(house):
    with llamacpp_engine(house, cells=512, max_waiting=1, start=False) as engine:
        streams = [engine.submit(asked(None))]
        with pytest.raises(EngineBusy):
            engine.submit(asked(None))
        assert streams[0].cancelled is False


def test_closing_ends_what_runs(house):
    with llamacpp_engine(house, cells=512) as engine:
        stream = engine.submit(asked(None, max_tokens=400))
        next(iter(stream))
    assert list(stream)[-1].finish_reason == "cancelled"
    with pytest.raises(EngineError, match="closed"):
        engine.submit(asked(None))


def test_a_prefix_of_another_model_is_refused(house, engine):
    from foreword.errors import ModelMismatch

    short: KVPrefix = house.tasks[0].prefix
    other = replace(short, model=replace(short.model, rope='{"rope_theta": 1.0}'))
    with pytest.raises(ModelMismatch, match="rope"):
        engine.submit(asked(replace(house.tasks[0], prefix=other)))
