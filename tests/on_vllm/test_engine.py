"""One engine with a small cache, all kinds of prefixes, and everything that may go wrong with them."""

from __future__ import annotations

import random
import shutil
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foreword.core import Adapter, Constraint, LowRank, SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import EngineBusy, PromptTooLong, RequestError, UnsupportedModel
from foreword.text.label_scorers import WordScorer
from foreword.text.prompt import Prompt
from foreword.text.task_prompts import from_ids
from foreword.text.verbalizer import WordTrie

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from on_vllm.running_engine import BLOCK
from served_model import tokens

IDS = (5, 17, 90, 200, 31)


def make_request(task, ids=IDS, **sampling) -> Request:
    return Request.from_prompt(from_ids(task, ids), SamplingParams(**{"max_tokens": 8, "ignore_eos": True, **sampling}))


def raw_finish_reason(engine, prompt: list[int], kv_transfer_params: dict, salt: str | None = None, **sampling) -> str:
    """The finish reason of a request that goes to vLLM without Foreword's checks."""
    from foreword.vllm import compat

    params = compat.SamplingParams(max_tokens=4, extra_args={"kv_transfer_params": kv_transfer_params}, **sampling)
    given = {"prompt_token_ids": prompt, **({} if salt is None else {"cache_salt": salt})}

    async def last():
        async for output in engine._llm.generate(given, params, uuid.uuid4().hex):
            found = output.outputs[0].finish_reason
        return found

    return engine._run(last())


def learned_tasks(served):
    return [task for task in served.tasks if task.prefix.token_ids is None]


def test_mixed_requests_get_the_embedded_engine_s_tokens(served, engine):
    requests = served.requests(200)
    before = engine.statistics()["preempted"]
    found = tokens(engine, requests)
    assert found == served.expected(requests)
    assert engine.statistics()["preempted"] > before  # the cache was too small, and nobody suffered


def test_requests_that_run_until_they_must_give_way_go_on_rightly(served, engine):
    requests = [
        replace(each, sampling=SamplingParams(max_tokens=100, ignore_eos=True)) for each in served.requests(24, seed=3)
    ]
    before = engine.statistics()["preempted"]
    assert tokens(engine, requests) == served.expected(requests)
    assert engine.statistics()["preempted"] > before


def test_long_requests_are_run_in_pieces(served, engine):
    draw = random.Random(8)
    requests = [
        make_request(task, [draw.randrange(250) for _ in range(150)])  # a step runs 64 tokens
        for task in (*served.tasks[::3], None)
    ]
    assert tokens(engine, requests) == served.expected(requests)


def test_two_tasks_with_the_same_placeholders_share_no_block(served, engine):
    one, other = served.publish("one", 100, length=4 * BLOCK), served.publish("other", 101, length=4 * BLOCK)
    requests = [make_request(one), make_request(other), make_request(one)]
    expected = served.expected(requests)
    assert expected[0] != expected[1]
    assert [tokens(engine, [request])[0] for request in requests] == expected


def test_a_task_s_requests_share_its_blocks(served, engine):
    task = served.publish("shared", 102, length=3 * BLOCK)
    tokens(engine, [make_request(task)])
    before = engine.statistics()["tokens_reused"]
    tokens(engine, [make_request(task, (7, 8, 9))])
    assert engine.statistics()["tokens_reused"] - before == 3 * BLOCK


def test_a_new_version_answers_as_itself(served, engine):
    old = served.publish("renewed", 103, length=2 * BLOCK)
    first = tokens(engine, [make_request(old)])
    new = served.publish("renewed", 104, length=2 * BLOCK)
    found = [tokens(engine, [make_request(task)])[0] for task in (new, old)]
    assert found == served.expected([make_request(new), make_request(old)])
    assert found[1] == first[0] != found[0]


def test_any_part_of_a_static_prefix_is_exact(served, engine):
    whole = next(task for task in served.tasks if task.prefix.token_ids and task.prefix.length > 2 * BLOCK)
    requests = [
        Request(IDS, whole.prefix, length, SamplingParams(max_tokens=8, ignore_eos=True))
        for length in (1, BLOCK, BLOCK + 7, whole.prefix.length)
    ]
    assert tokens(engine, requests) == served.expected(requests)


@pytest.mark.parametrize("penalty", [{"repetition_penalty": 1.7}, {"presence_penalty": 1.5, "frequency_penalty": 0.5}])
def test_penalties_know_nothing_of_placeholders(served, engine, penalty):
    requests = [make_request(task, max_tokens=20, **penalty) for task in served.tasks[:6]]
    assert tokens(engine, requests) == served.expected(requests)


def test_soft_tokens_inside_a_request_are_its_own(served, engine):
    spread = float(served.lm.model.get_input_embeddings().weight.std())
    draw = torch.Generator().manual_seed(3)
    requests = []
    for task in [*served.tasks[:6], None]:
        for penalty in (1.0, 1.5):
            soft = torch.randn(3, served.lm.identity.hidden_size, generator=draw) * spread
            front = {"prefix": task.prefix, "prefix_length": task.prefix.length} if task is not None else {}
            sampling = SamplingParams(max_tokens=12, ignore_eos=True, repetition_penalty=penalty)
            requests.append(Request((5, -1, 17, -3, -2, *range(40, 80)), soft=soft, sampling=sampling, **front))
    assert tokens(engine, requests) == served.expected(requests)
    # Same ids, other soft tokens: whatever vLLM keeps of one request is nothing to the next.
    others = [replace(request, soft=-request.soft) for request in requests]
    assert tokens(engine, others) == served.expected(others) != served.expected(requests)


def test_soft_tokens_are_scored(served, engine):
    soft = torch.randn(2, served.lm.identity.hidden_size, generator=torch.Generator().manual_seed(4))
    task = learned_tasks(served)[1]
    prompts = [Prompt((-1, 9, -2, 8), task.prefix, task.prefix.length, soft=soft)]
    trie = WordTrie.build([(0, (40,)), (1, (41, 43))], 2)
    with Engine(served.lm) as embedded:
        expected = embedded.score(prompts, WordScorer(trie))
    assert torch.allclose(engine.score(prompts, WordScorer(trie)), expected, atol=1e-4)


def test_logprobs_are_the_embedded_engine_s(served, engine):
    request = make_request(served.tasks[3], logprobs=3)
    found = [each for chunk in engine.submit(request) for each in chunk.logprobs]
    with Engine(served.lm) as embedded:
        expected = [each for chunk in embedded.submit(request) for each in chunk.logprobs]
    assert [each.token_id for each in found] == [each.token_id for each in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]


def test_seeds_make_answers_repeatable(served, engine):
    request = make_request(served.tasks[4], temperature=1.0, seed=7, max_tokens=20)
    others = served.requests(8, seed=9)
    alone = tokens(engine, [request])[0]
    assert tokens(engine, [*others, request])[-1] == alone


def test_stop_texts_and_ends(served, engine):
    free = tokens(engine, [make_request(served.tasks[5], max_tokens=12)])[0]
    text = served.lm.tokenizer.decode(free)
    request = make_request(served.tasks[5], max_tokens=12, stop=(text[3:5],))
    chunks = list(engine.submit(request))
    with Engine(served.lm) as embedded:
        expected = list(embedded.submit(request))
    assert "".join(chunk.text for chunk in chunks) == "".join(chunk.text for chunk in expected)
    assert chunks[-1].finish_reason == expected[-1].finish_reason == "stop"


def test_a_constraint_is_kept(served, engine):
    request = make_request(served.tasks[3], constraint=Constraint.choice(["yes", "no"]), ignore_eos=False, max_tokens=8)
    assert "".join(chunk.text for chunk in engine.submit(request)) in ("yes", "no")


def test_words_are_scored_as_by_the_embedded_engine(served, engine):
    draw = random.Random(5)
    trie = WordTrie.build([(0, (40,)), (0, (41, 42)), (1, (41, 43, 44)), (2, (50,))], 3)
    prompts = [from_ids(draw.choice([*served.tasks, None]), [draw.randrange(250) for _ in range(9)]) for _ in range(12)]
    with Engine(served.lm) as embedded:
        expected = embedded.score(prompts, WordScorer(trie))
    assert torch.allclose(engine.score(prompts, WordScorer(trie)), expected, atol=1e-4)


def test_prompts_are_read_behind_static_prefixes_only(served, engine):
    static = next(task for task in served.tasks if task.prefix.token_ids)
    prompts = [from_ids(static, IDS), from_ids(None, IDS)]
    with Engine(served.lm) as embedded:
        expected = embedded.token_logprobs(prompts)
    for mine, theirs in zip(engine.token_logprobs(prompts), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)
    with pytest.raises(RequestError, match="behind a learned prefix"):
        engine.token_logprobs([from_ids(learned_tasks(served)[0], IDS)])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda prompt: (prompt, {"prompt_logprobs": 0}),
        lambda prompt: (prompt, {"skip_reading_prefix_cache": True}),
        lambda prompt: (prompt[: -len(IDS)], {}),
    ],
    ids=["prompt_logprobs", "skip_reading_prefix_cache", "placeholders only"],
)
def test_placeholders_are_never_run(served, engine, spoil):
    """Each of these made vLLM compute over placeholders, or stop altogether; what follows must not suffer."""
    for task in (served.publish("guarded", 105, length=2 * BLOCK), served.publish("single", 106, length=1)):
        whole = engine._build_prompt(make_request(task))
        prompt, options = spoil(list(whole.token_ids))
        assert (
            raw_finish_reason(engine, prompt, whole.kv_transfer_params, whole.reference.cache_salt, **options)
            == "error"
        )
        assert tokens(engine, [make_request(task)]) == served.expected([make_request(task)])


@pytest.mark.parametrize(
    "forge",
    [
        lambda reference: {**reference, "key": ""},
        lambda reference: {**reference, "key": "guessed"},
        lambda reference: {"source": reference["source"]},
        lambda reference: {**reference, "length": "5"},
        lambda reference: None,
    ],
)
def test_a_client_cannot_choose_a_prefix_by_itself(served, engine, forge):
    whole = engine._build_prompt(make_request(served.tasks[6]))
    forged = forge(whole.kv_transfer_params["foreword"])
    ended = raw_finish_reason(engine, list(whole.token_ids), {"foreword": forged})
    assert ended == ("length" if forged is None else "error")


def test_a_prefix_that_cannot_be_loaded_fails_its_request_alone(served, engine):
    lost = served.publish("lost", 107)
    name, _, version = lost.ref.partition("@")
    shutil.rmtree(Path(served.bank.location) / name / "versions" / version)
    good = served.requests(10, seed=4)
    streams = [engine.submit(make_request(lost)), *map(engine.submit, good)]
    chunks = list(streams[0])
    assert chunks[-1].finish_reason == "error"
    assert "could not load the prefix" in chunks[-1].error
    assert [[t for chunk in stream for t in chunk.token_ids] for stream in streams[1:]] == served.expected(good)


def test_a_prefix_that_is_not_what_the_task_says_is_refused(served, engine):
    task, other = served.publish("swapped", 108), served.publish("swapper", 109)
    forged = replace(task.prefix, keys=other.prefix.keys, values=other.prefix.values)
    chunks = list(engine.submit(Request(IDS, forged, forged.length, SamplingParams(max_tokens=4))))
    assert chunks[-1].finish_reason == "error"


def test_cancelling_frees_the_place(served, engine):
    streams = [engine.submit(make_request(served.tasks[index % 20], max_tokens=150)) for index in range(40)]
    for stream in streams:
        stream.cancel()
    assert {list(stream)[-1].finish_reason for stream in streams} == {"cancelled"}
    end = time.monotonic() + 20
    while engine.statistics()["running"] or engine.statistics()["waiting"]:
        tokens(engine, [make_request(None, max_tokens=1)])  # statistics come with steps
        assert time.monotonic() < end
    requests = served.requests(20, seed=6)
    assert tokens(engine, requests) == served.expected(requests)


def test_what_can_never_run_is_refused_by_name(served, engine):
    pair = LowRank(torch.zeros(4, 64), torch.zeros(128, 4))
    with pytest.raises(RequestError, match="--enable-lora --max-lora-rank 8"):
        engine.submit(Request(IDS, adapter=Adapter({"model.layers.0.self_attn.q_proj": pair})))
    learned = learned_tasks(served)[0].prefix
    with pytest.raises(PromptTooLong):
        engine.submit(make_request(served.tasks[-1], range(250), max_tokens=4))
    with pytest.raises(RequestError, match="publish it"):
        engine.submit(Request(IDS, replace(learned, source=""), learned.length))
    with pytest.raises(UnsupportedModel, match="foreword publish"):
        engine.prefill(IDS)


def test_too_many_requests_are_refused_at_once(served, engine, monkeypatch):
    monkeypatch.setattr(engine, "_max_waiting", 2)
    streams = [engine.submit(make_request(None, max_tokens=50)) for _ in range(2)]
    with pytest.raises(EngineBusy):
        engine.submit(make_request(None))
    for stream in streams:
        list(stream)
