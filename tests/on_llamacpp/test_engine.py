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

from foreword.core import Adapter, Constraint, KVPrefix, LowRank, SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import EngineBusy, EngineError, PromptTooLong, RequestError, UnsupportedModel
from foreword.evaluation.answers import Answers
from foreword.evaluation.predict import classify
from foreword.text.label_scorers import HeadScorer, WordScorer
from foreword.text.prompt import Prompt
from foreword.text.task_prompts import from_ids, from_text
from foreword.text.verbalizer import WordTrie
from on_llamacpp.gguf_models import (
    CLOSE,
    IDS,
    assert_same_answers,
    llamacpp_engine,
    make_gguf_model,
    make_request,
    tasks_without_torch,
)
from served_model import CACHE_BYTES, learned, tokens

TRIE = WordTrie.build([(0, (40,)), (0, (41, 42)), (1, (41, 43, 44)), (2, (50,))], 3)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_mixed_requests_get_the_embedded_engine_s_tokens(family, half, tmp_path):
    own = make_gguf_model(family, tmp_path, half=half)
    requests = own.requests(100)
    assert len({id(request.prefix) for request in requests}) > 20
    with llamacpp_engine(own, cells=2048) as engine:
        assert engine.key_layout.interleaved == (family == "llama")
        assert_same_answers(own, requests, tokens(engine, requests), ties=0.1 if half else 0)
        assert engine.statistics()["prefixes_written"] >= 20
        engine.allocator.check()


def test_a_lost_or_wrong_prefix_would_show(served, engine):
    """The comparison above can fail: without their prefixes nearly all answers are others."""
    requests = [request for request in served.requests(40) if request.prefix is not None]
    bare = [replace(request, prefix=None, prefix_length=0) for request in requests]
    with pytest.raises(AssertionError, match="answers differ"):
        assert_same_answers(served, requests, tokens(engine, bare))


def test_prefixes_read_without_pytorch_are_the_same(served, engine):
    plain = tasks_without_torch(served)
    assert [task.prefix.digest for task in plain] == [task.prefix.digest for task in served.tasks]
    assert all(isinstance(task.prefix.keys[0], np.ndarray) for task in plain)
    mine, theirs = ([make_request(task) for task in tasks] for tasks in (plain, served.tasks))
    assert tokens(engine, mine) == tokens(engine, theirs)


def test_a_prefix_lies_in_the_cache_once(served, engine):
    task = served.publish("shared", 102, length=96)
    before = engine.statistics()["prefixes_written"]
    requests = [make_request(task, (7, 8, token)) for token in range(9, 29)]
    assert_same_answers(served, requests, tokens(engine, requests))
    assert engine.statistics()["prefixes_written"] == before + 1


def test_any_part_of_a_static_prefix_is_exact(served, engine):
    whole = next(task for task in served.tasks if task.prefix.token_ids and task.prefix.length > 64)
    lengths = (1, 32, 39, whole.prefix.length)
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)
    requests = [Request(IDS, whole.prefix, length, sampling) for length in lengths]
    assert_same_answers(served, requests, tokens(engine, requests))


def test_long_requests_are_run_in_pieces(served, engine):
    draw = random.Random(8)
    requests = [
        make_request(task, [draw.randrange(250) for _ in range(150)])  # a step runs 64 tokens
        for task in (*served.tasks[::3], None)
    ]
    assert_same_answers(served, requests, tokens(engine, requests))


def test_requests_that_must_give_way_go_on_rightly(served, engine):
    requests = [
        replace(each, sampling=SamplingParams(max_tokens=60, ignore_eos=True)) for each in served.requests(24, seed=3)
    ]
    before = engine.statistics()["preempted"]
    assert_same_answers(served, requests, tokens(engine, requests))
    assert engine.statistics()["preempted"] > before


def test_a_new_version_answers_as_itself(served, engine):
    old = served.publish("renewed", 103, length=64)
    first = tokens(engine, [make_request(old)])
    new = served.publish("renewed", 104, length=64)
    found = [tokens(engine, [make_request(task)])[0] for task in (new, old)]
    assert found == served.expected([make_request(new), make_request(old)])
    assert found[1] == first[0] != found[0]


def test_nobody_sees_another_s_prefix_whatever_happens_meanwhile(served, engine):
    """Readers in threads, half of whom go away, while prefixes are written, shared and thrown out."""
    requests = served.requests(120, seed=21, tokens=16)
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
    prompts = [from_ids(task, IDS) for task in served.tasks]
    scores = engine.score(prompts, WordScorer(TRIE))
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert len(found) > 30
    order = sorted(found)
    assert_same_answers(served, [requests[i] for i in order], [found[i] for i in order])
    with Engine(served.lm, cache_bytes=CACHE_BYTES) as embedded:
        np.testing.assert_allclose(scores, embedded.score(prompts, WordScorer(TRIE)), atol=CLOSE)
    wait_until_empty(engine)
    after = engine.statistics()
    assert after["cancelled"] > before["cancelled"]
    assert after["prefixes_written"] - before["prefixes_written"] > len(served.tasks)  # some more than once
    assert after["failed"] == before["failed"]


def wait_until_empty(engine) -> None:
    end = time.monotonic() + 20
    while engine.statistics()["running"] or engine.statistics()["waiting"]:
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_words_are_scored_as_by_the_embedded_engine(served, engine):
    draw = random.Random(5)
    prompts = [from_ids(draw.choice([*served.tasks, None]), [draw.randrange(250) for _ in range(9)]) for _ in range(40)]
    with Engine(served.lm, cache_bytes=CACHE_BYTES) as embedded:
        expected = embedded.score(prompts, WordScorer(TRIE))
        bare = embedded.score([from_ids(None, prompt.token_ids) for prompt in prompts], WordScorer(TRIE))
    found = engine.score(prompts, WordScorer(TRIE))
    np.testing.assert_allclose(found, expected, atol=CLOSE)
    assert np.abs(np.asarray(bare) - found).max() > 0.3
    assert engine.score([], WordScorer(TRIE)).shape == (0, 3)


def test_prompts_are_read_behind_learned_prefixes_too(served, engine):
    draw = random.Random(6)
    prompts = [from_ids(task, [draw.randrange(250) for _ in range(90)]) for task in (*served.tasks[:8], None)]
    prompts = [replace(prompt, output_indices=()) for prompt in (*prompts, from_ids(None, (5,)))]
    prompts.append(replace(from_ids(None, (5, 6, 7)), output_indices=(1,)))
    with Engine(served.lm, cache_bytes=CACHE_BYTES) as embedded:
        expected = embedded.token_logprobs(prompts)
        top = embedded.prompt_logprobs(prompts[2], 3)
    for mine, theirs in zip(engine.token_logprobs(prompts), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=CLOSE)
    found = engine.prompt_logprobs(prompts[2], 3)
    assert [each.token_id for each in found] == [each.token_id for each in top]
    for mine, theirs in zip(found, top, strict=True):
        assert [value for _, value in mine.top] == pytest.approx([value for _, value in theirs.top], abs=CLOSE)


def test_soft_tokens_inside_a_request_are_its_own(served, engine):
    spread = float(served.lm.model.get_input_embeddings().weight.std())
    draw = torch.Generator().manual_seed(3)
    requests = []
    for task in [*served.tasks[:6], None]:
        soft = torch.randn(3, served.lm.identity.hidden_size, generator=draw) * spread
        ids = (5, -1, 17, -3, -2, *range(40, 120))  # more than a step
        requests.append(replace(make_request(task), token_ids=ids, soft=soft))
    requests.append(replace(requests[0], token_ids=(5, 9, -1)))
    assert_same_answers(served, requests, tokens(engine, requests))
    others = [replace(request, soft=-request.soft) for request in requests]
    assert tokens(engine, others) != tokens(engine, requests)
    prompts = [Prompt(r.token_ids[:9], r.prefix, r.prefix_length, soft=r.soft) for r in requests]
    with Engine(served.lm, cache_bytes=CACHE_BYTES) as embedded:
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
def test_options_mean_what_they_mean_to_the_embedded_engine(served, engine, sampling):
    requests = [make_request(task, **sampling) for task in served.tasks[:12]]
    mine, theirs = tokens(engine, requests), served.expected(requests)
    assert mine == theirs
    assert mine != tokens(engine, [make_request(task) for task in served.tasks[:12]])


def test_a_seeded_answer_is_the_same_alone_and_in_a_crowd(served, engine):
    request = make_request(served.tasks[4], temperature=1.0, seed=7, max_tokens=20)
    alone = tokens(engine, [request])[0]
    assert tokens(engine, [*served.requests(8, seed=9), request])[-1] == tokens(engine, [request])[0] == alone


def test_logprobs_are_the_model_s_own(served, engine):
    request = make_request(served.tasks[3], logprobs=3)
    found = [each for chunk in engine.submit(request) for each in chunk.logprobs]
    with Engine(served.lm, cache_bytes=CACHE_BYTES) as embedded:
        expected = [each for chunk in embedded.submit(request) for each in chunk.logprobs]
    assert [each.token_id for each in found] == [each.token_id for each in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=CLOSE)


def test_stop_texts_and_ends(served, engine):
    free = tokens(engine, [make_request(served.tasks[5], max_tokens=12)])[0]
    text = served.lm.tokenizer.decode(free)
    for request in (
        make_request(served.tasks[5], max_tokens=12, stop=(text[3:5],)),
        make_request(served.tasks[5], max_tokens=12, stop_token_ids=(free[4],)),
        make_request(served.tasks[5], max_tokens=12, ignore_eos=False, logit_bias={256: 90.0}),
    ):
        chunks = list(engine.submit(request))
        with Engine(served.lm, cache_bytes=CACHE_BYTES) as embedded:
            expected = list(embedded.submit(request))
        assert "".join(chunk.text for chunk in chunks) == "".join(chunk.text for chunk in expected)
        assert chunks[-1].finish_reason == expected[-1].finish_reason == "stop"


def test_constraints_are_kept(served, engine):
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 9, "minimum": 0}},
              "required": ["age"], "additionalProperties": False}  # fmt: skip
    for constraint, fits in (
        (Constraint.choice(["yes", "no"]), lambda text: text in ("yes", "no")),
        (Constraint.json_schema(schema), lambda text: 0 <= json.loads(text)["age"] <= 9),
    ):
        request = make_request(served.tasks[3], constraint=constraint, ignore_eos=False, max_tokens=60)
        assert fits("".join(chunk.text for chunk in engine.submit(request)))


def test_what_is_scored_gets_room_while_others_run(served, engine):
    """Prefixes of what runs fill the cache; a scoring that needs more waits, and nobody overtakes it for ever."""
    task = served.publish("wide", 105, length=400)
    streams = [
        engine.submit(make_request(task, max_tokens=100)),
        engine.submit(make_request(served.tasks[-1], max_tokens=100)),
    ]
    other = served.publish("other-wide", 106, length=500)
    found = engine.score([from_ids(other, IDS)], WordScorer(TRIE))
    with Engine(served.lm, cache_bytes=CACHE_BYTES) as embedded:
        np.testing.assert_allclose(found, embedded.score([from_ids(other, IDS)], WordScorer(TRIE)), atol=CLOSE)
    assert all(list(stream)[-1].finish_reason == "length" for stream in streams)


def test_what_can_never_run_is_refused(served, engine):
    wide = served.lm.identity.hidden_size
    adapter = Adapter({"model.layers.0.self_attn.q_proj": LowRank(torch.zeros(1, wide), torch.zeros(wide, 1))})
    with pytest.raises(RequestError, match="LoRA"):
        engine.submit(replace(make_request(served.tasks[0]), adapter=adapter))
    with pytest.raises(RequestError, match="LoRA"):
        engine.score([Prompt(IDS, None, 0, adapter=adapter)], WordScorer(TRIE))
    with pytest.raises(UnsupportedModel, match="heads are not read"):
        engine.score([Prompt(IDS, None, 0)], HeadScorer(torch.zeros(2, wide), torch.zeros(2)))
    with pytest.raises(UnsupportedModel, match="computes no prefix"):
        engine.prefill(IDS)
    with pytest.raises(PromptTooLong, match="context of 512"):
        engine.submit(make_request(served.tasks[0], max_tokens=512))


def test_a_prefix_that_float16_does_not_hold_is_refused(served_float16):
    short = served_float16.tasks[3].prefix
    keys = (short.keys[0] * 1e6, *short.keys[1:])
    with llamacpp_engine(served_float16, cells=256) as engine, pytest.raises(RequestError, match=r"beyond 65,504"):
        engine.submit(make_request(replace(served_float16.tasks[3], prefix=replace(short, keys=keys))))


def test_a_prefix_and_request_beyond_the_cache_are_refused(served):
    with (
        llamacpp_engine(served, cells=256) as engine,
        pytest.raises(PromptTooLong, match=r"the context of 256|positions of the cache"),
    ):
        engine.submit(make_request(served.tasks[-1]))


def test_too_many_wait(served):
    with llamacpp_engine(served, cells=512, max_waiting=1, start=False) as engine:
        streams = [engine.submit(make_request(None))]
        with pytest.raises(EngineBusy):
            engine.submit(make_request(None))
        assert streams[0].cancelled is False


def test_closing_ends_what_runs(served):
    with llamacpp_engine(served, cells=512) as engine:
        stream = engine.submit(make_request(None, max_tokens=400))
        next(iter(stream))
    assert list(stream)[-1].finish_reason == "cancelled"
    with pytest.raises(EngineError, match="closed"):
        engine.submit(make_request(None))


def test_a_prefix_of_another_model_is_refused(served, engine):
    from foreword.errors import ModelMismatch

    short: KVPrefix = served.tasks[0].prefix
    other = replace(short, model=replace(short.model, rope='{"rope_theta": 1.0}'))
    with pytest.raises(ModelMismatch, match="rope"):
        engine.submit(make_request(replace(served.tasks[0], prefix=other)))


def test_a_task_that_labels_answers_its_label(served, engine):
    words = {"good": (" yes",), "bad": (" no",)}
    task = Task("mood", "test", learned(served.lm, 9, 50), template="{text}\nMood:{mask}", verbalizer=words)
    answers, texts = Answers(engine), ["a fine day", "rain", "x"]
    probs = classify(engine, task, [{"text": text} for text in texts])
    for text, row in zip(texts, probs, strict=True):
        prompt = from_text(engine.tokenizer, task, text)
        (stream,) = answers.submit(task, prompt, SamplingParams(logprobs=2))
        (chunk,) = stream
        word = {"good": " yes", "bad": " no"}[max(row, key=row.__getitem__)]
        assert (chunk.text, chunk.finish_reason) == (word, "stop")
        assert chunk.token_ids == tuple(engine.tokenizer.encode(word))
        assert chunk.logprobs[0].top[0] == (word, pytest.approx(float(np.log(max(row.values()))), abs=1e-5))
