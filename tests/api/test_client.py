"""The calls of `foreword.Engine` and of `foreword.connect`: waiting, asynchronous, streaming, and their errors."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

import foreword
from foreword import errors
from foreword.api.client import Client
from foreword.api.local_engine import LocalEngine
from foreword.api.results import Classification, Generation, Tagging
from foreword.core import Head, Task
from foreword.prompts.lower import empty_prefix
from server.running_server import foreign_task, label_task, wait_until
from tiny_models import save_tiny

HELLO = [{"role": "user", "content": "Hello"}]


def ask_everything(client: Client) -> dict[str, Any]:
    """Every call that waits, with what it gives."""
    return {
        "base": client.generate("Once", max_tokens=6, temperature=0),
        "task": client.generate("Once", task="poet", max_tokens=6),
        "ids": client.generate([79, 110], max_tokens=3, temperature=0, return_token_ids=True),
        "version": client.generate("a cat", task="story@0001", max_tokens=4, temperature=0),
        "sampled": client.generate("Once", max_tokens=6, temperature=1.0, seed=7, top_p=0.9, stop=["zz"]),
        "form": client.generate("Once", max_tokens=9, temperature=0, structured_outputs={"choice": ["yes", "no"]}),
        "many": client.generate_many(["Once", "Twice"], max_tokens=2, temperature=0, logprobs=2),
        "chat": client.chat(HELLO, task="kind", max_tokens=4, temperature=0, logprobs=1),
        "chats": client.chat_many([HELLO, HELLO], max_tokens=2, temperature=0),
        "labels": client.classify(["a", {"text": "b"}], "mood"),
        "fields": client.classify({"first": "a", "second": "b"}, "pair"),
        "answered": client.generate({"text": "a"}, task="mood", max_tokens=4),
        "tags": client.tag(["play jazz", ["play", "it"]], "slots"),
        "names": client.tasks(),
    }


def test_a_server_gives_what_the_engine_gives(engine: LocalEngine, remote: Client):
    here, there = ask_everything(engine), ask_everything(remote)
    names = [name for name in engine.bank.names() if name != "foreign"]
    assert here.pop("names") == there.pop("names") == names
    for name, found in here.items():
        assert _rounded(found) == _rounded(there[name]), name


def _rounded(found: Any) -> Any:
    """Answers with their probabilities to four digits, and without what the cache happened to hold."""
    if isinstance(found, list):
        return [_rounded(each) for each in found]
    if isinstance(found, Generation):
        tokens = [(each.token, round(each.logprob or 0, 4), sorted(each.top)) for each in found.logprobs]
        counts = found.usage.prompt_tokens, found.usage.completion_tokens
        return found.text, found.finish_reason, found.model, found.token_ids, tokens, counts
    if isinstance(found, Classification):
        return found.label, {label: round(prob, 4) for label, prob in found.probs.items()}
    assert isinstance(found, Tagging)
    return found.words, found.tags, [round(prob, 4) for prob in found.probs]


def test_embeddings_are_the_same_numbers(engine: LocalEngine, remote: Client):
    here, there = engine.embed(["a film", "dull"]), remote.embed(["a film", "dull"])
    assert here.dtype == np.float32
    assert here.shape == (2, 48)
    assert np.allclose(here, there, atol=1e-6)
    assert np.allclose(np.linalg.norm(here, axis=1), 1, atol=1e-5)
    assert not np.allclose(engine.embed("a film", "poet"), here[:1], atol=1e-3)
    assert not np.allclose(engine.embed("a film", pooling="mean"), here[:1], atol=1e-3)


def test_results_have_what_was_asked_for(client: Client):
    answer = client.generate("Once", task="poet", max_tokens=5, logprobs=2, return_token_ids=True)
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens >= 5) == (9, True)
    assert answer.usage.completion_tokens == len(answer.token_ids) == len(answer.logprobs) == 5
    assert answer.usage.total_tokens == 14
    assert answer.model.startswith("poet@0001-")
    assert str(answer) == answer.text
    assert all(each.logprob <= max(each.top.values()) + 1e-6 for each in answer.logprobs)
    assert client.chat(HELLO, max_tokens=3, temperature=0, logprobs=2).logprobs[0].top
    turn = client.chat(HELLO, max_tokens=3, temperature=0).message
    assert turn["role"] == "assistant"
    assert client.chat([*HELLO, turn, *HELLO], max_tokens=3, ignore_eos=True).finish_reason == "length"


def test_a_task_that_labels_answers_its_label(client: Client):
    words = {"good": ("yes", "fine"), "bad": ("no",)}[client.classify(["a"], "mood")[0].label]
    for answer in (
        client.generate({"text": "a"}, task="mood"),
        client.chat([{"role": "user", "content": "a"}], task="mood"),
    ):
        assert answer.text.strip() in words
        assert answer.finish_reason == "stop"
    pieces = list(client.stream_generate({"text": "a"}, task="mood"))
    assert "".join(map(str, pieces)).strip() in words


def test_the_defaults_are_those_of_the_server(client: Client):
    assert client.generate("Once", task="poet").usage.completion_tokens == 16
    assert client.generate("Once", task="poet").text == client.generate("Once", task="poet").text


def test_a_stream_is_the_answer_in_pieces(client: Client):
    whole = client.generate("Once", max_tokens=12, temperature=0, logprobs=0)
    chunks = list(client.stream_generate("Once", max_tokens=12, temperature=0, logprobs=0))
    assert len(chunks) > 2
    assert "".join(map(str, chunks)) == whole.text
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (chunks[-1].finish_reason, chunks[-1].usage.completion_tokens) == ("length", 12)
    assert [each.token for chunk in chunks for each in chunk.logprobs] == [each.token for each in whole.logprobs]
    chat = client.chat(HELLO, task="kind", max_tokens=8, temperature=0)
    pieces = list(client.stream_chat(HELLO, task="kind", max_tokens=8, temperature=0))
    assert "".join(map(str, pieces)) == chat.text
    assert pieces[-1].usage.prompt_tokens == chat.usage.prompt_tokens


def test_coroutines_of_several_loops_run_together(client: Client):
    async def ask() -> list[str]:
        answers = await asyncio.gather(*[client.agenerate("Once", max_tokens=4, temperature=0) for _ in range(30)])
        chunks = [chunk async for chunk in client.astream_generate("Once", max_tokens=4, temperature=0)]
        chats = [chunk async for chunk in client.astream_chat(HELLO, max_tokens=4, temperature=0)]
        assert chats[-1].usage is not None
        labels = await client.aclassify(["a"], "mood")
        tags, vectors = await client.atag(["a b"], "slots"), await client.aembed(["a"])
        assert (len(labels), len(tags[0].tags), vectors.shape) == (1, 2, (1, 48))
        assert (await client.achat(HELLO, max_tokens=2, ignore_eos=True)).usage.completion_tokens == 2
        assert len(await client.achat_many([HELLO] * 3, max_tokens=1)) == 3
        return [*(answer.text for answer in answers), "".join(map(str, chunks)), *(await client.atasks())]

    first, second = asyncio.run(ask()), asyncio.run(ask())
    assert first == second
    assert len(set(first[:31])) == 1
    assert client.generate("Once", max_tokens=4, temperature=0).text == first[0]


def test_waiting_works_inside_a_running_loop(client: Client):
    """As in a notebook, whose cells run in a loop."""

    async def cell() -> str:
        return client.generate("Once", max_tokens=4, temperature=0).text

    assert asyncio.run(cell()) == client.generate("Once", max_tokens=4, temperature=0).text


def test_an_iterator_that_is_closed_cancels_its_answer(engine: LocalEngine):
    before = engine.engine.statistics()["cancelled"]
    stream = engine.stream_generate("Once", max_tokens=200, ignore_eos=True)
    next(stream)
    stream.close()
    wait_until(lambda: engine.engine.statistics()["cancelled"] == before + 1)


def test_a_cancelled_coroutine_cancels_its_answer(engine: LocalEngine):
    before, asked = (engine.engine.statistics()[name] for name in ("cancelled", "requests"))

    async def give_up() -> None:
        asking = asyncio.create_task(engine.agenerate("Once", max_tokens=240, ignore_eos=True))
        while engine.engine.statistics()["requests"] == asked:
            await asyncio.sleep(0.001)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(give_up())
    wait_until(lambda: engine.engine.statistics()["cancelled"] == before + 1)


def test_more_prompts_than_may_wait_are_answered(lm, bank):
    with foreword.Engine(lm, bank=bank, max_waiting=300) as engine:
        assert len(engine.generate_many(["Once"] * 700, max_tokens=1)) == 700


def test_one_bad_prompt_fails_the_call_and_stops_the_others(engine: LocalEngine):
    with pytest.raises(errors.PromptTooLong):
        engine.generate_many(["Once", "x" * 400, "Once"], max_tokens=200, ignore_eos=True)
    wait_until(lambda: engine.engine.statistics()["running"] == 0)


REFUSED: list[tuple[type[Exception], str, Any]] = [
    (errors.UnknownTask, "did you mean poet", lambda ask: ask.generate("a", task="poett")),
    (errors.UnknownTask, "no version", lambda ask: ask.generate("a", task="poet@0009")),
    (errors.ModelMismatch, "another model", lambda ask: ask.generate("a", task="foreign")),
    (errors.PromptTooLong, "256", lambda ask: ask.generate("a" * 400)),
    (errors.UnsupportedOption, "max_tokenz", lambda ask: ask.generate("a", max_tokenz=3)),
    (errors.UsageError, "temperature", lambda ask: ask.generate("a", temperature=-1)),
    (errors.UsageError, "generate_many", lambda ask: ask.generate("a", n=2)),
    (errors.UsageError, "stream_generate", lambda ask: ask.generate("a", stream=True)),
    (errors.UsageError, "stream_chat", lambda ask: list(ask.stream_chat(HELLO, stream=True))),
    (errors.UsageError, "generate_many", lambda ask: ask.generate(["a", "b"])),
    (errors.RequestError, "surrogate", lambda ask: ask.generate("a\ud800")),
    (errors.UsageError, "JSON values", lambda ask: ask.generate("a", temperature=np.float32(1))),
    (errors.UsageError, "JSON values", lambda ask: ask.generate("a", temperature=float("nan"))),
    (errors.UsageError, "list such as", lambda ask: ask.chat("Hello")),
    (errors.UsageError, "at least one", lambda ask: ask.classify([], "mood")),
    (errors.TemplateError, "no template", lambda ask: ask.classify(["a"], "poet")),
    (errors.RequestError, "2 fields", lambda ask: ask.classify(["a"], "pair")),
    (errors.UsageError, "labels whole texts", lambda ask: ask.tag(["a"], "mood")),
    (errors.TemplateError, "no template", lambda ask: ask.generate({"text": "a"}, task="poet")),
    (errors.RequestError, "role", lambda ask: list(ask.stream_chat([{"role": "king", "content": "a"}]))),
]


@pytest.mark.parametrize(("kind", "words", "call"), REFUSED)
def test_errors_are_of_the_tree(client: Client, kind: type[Exception], words: str, call: Any):
    with pytest.raises(kind, match=words) as caught:
        call(client)
    assert type(caught.value) is kind


def test_a_task_can_be_given_as_an_object(engine: LocalEngine, remote: Client, lm):
    task = label_task(lm, "unpublished")
    expected = engine.classify(["a", "b"], "mood")
    assert [each.label for each in engine.classify(["a", "b"], task)] == [each.label for each in expected]
    assert engine.generate("Once", task=engine.bank.load("poet")).text == engine.generate("Once", task="poet").text
    assert "unpublished" not in engine.tasks()
    with pytest.raises(errors.UnknownTask):
        engine.classify(["a"], "unpublished")
    with pytest.raises(errors.ModelMismatch):
        engine.generate("a", task=foreign_task("other"))
    published = engine.bank.load("poet")
    assert remote.generate("Once", task=published).text == remote.generate("Once", task="poet").text
    with pytest.raises(errors.UsageError, match="publish it"):
        remote.classify(["a"], task)


def test_an_object_does_not_hide_a_task_of_its_name(engine: LocalEngine, lm):
    """Two tasks called mood, asked at once."""
    other = label_task(lm, "mood", "{text}!{mask}")

    async def both() -> tuple[Any, Any]:
        return await asyncio.gather(engine.aclassify(["a"], other), engine.aclassify(["a"], "mood"))

    given, named = asyncio.run(both())
    assert named[0].probs == pytest.approx(engine.classify(["a"], "mood")[0].probs, abs=1e-4)
    assert given[0].probs != pytest.approx(named[0].probs, abs=1e-4)


def test_a_task_that_is_published_meanwhile_is_asked(lm, tmp_path):
    with foreword.Engine(lm, bank=tmp_path) as engine:
        assert engine.tasks() == []
        foreword.publish("late", text="Once upon ", lm=lm, bank=tmp_path)
        assert engine.tasks() == ["late"]
        assert engine.generate("a", task="late", max_tokens=1).model.startswith("late@0001-")


def test_what_is_closed_says_so(lm, tmp_path):
    engine = foreword.Engine(lm, bank=tmp_path)
    engine.close()
    engine.close()
    with pytest.raises(errors.EngineError, match="closed"):
        engine.generate("a")
    assert "closed" in repr(engine)


def test_closing_ends_the_calls_of_other_threads(lm, tmp_path):
    engine, caught = foreword.Engine(lm, bank=tmp_path), []

    def ask() -> None:
        with pytest.raises(errors.EngineError, match="closed") as error:
            engine.generate("Once", max_tokens=250, ignore_eos=True)
        caught.append(error.value)

    async def aask() -> None:
        with pytest.raises(errors.EngineError, match="closed") as error:
            await engine.agenerate("Once", max_tokens=250, ignore_eos=True)
        caught.append(error.value)

    threads = [threading.Thread(target=ask), threading.Thread(target=lambda: asyncio.run(aask()))]
    for thread in threads:
        thread.start()
    wait_until(lambda: engine.engine.statistics()["running"] == 2)
    engine.close()
    for thread in threads:
        thread.join(timeout=20)
    assert len(caught) == 2


def test_a_program_that_closes_nothing_ends_without_a_word(tmp_path):
    program = (
        "import foreword\n"
        "from server.running_server import chat_model\n"
        f"engine = foreword.Engine(chat_model(), bank={str(tmp_path)!r})\n"
        "stream = engine.stream_generate('Once', max_tokens=200, ignore_eos=True)\n"
        "print(next(stream).finish_reason)\n"
    )
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")


def test_an_engine_that_runs_already_stays_open(engine: LocalEngine, bank):
    with foreword.Engine(engine.engine, bank=bank) as other:
        assert other.generate("Once", max_tokens=2, temperature=0).usage.completion_tokens == 2
    assert engine.engine.alive


def test_the_model_samples_as_its_makers_say(bank, tmp_path):
    """As on a server: a model's generation_config.json, unless that is left."""
    folder = save_tiny("llama", tmp_path / "model")
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    with foreword.Engine(str(folder), bank=bank) as engine:
        assert engine.generate("Once").text == engine.generate("Once", temperature=0).text
        found = {engine.generate("Once").text for _ in range(3)}
    assert len(found) == 1
    with foreword.Engine(str(folder), bank=bank, generation_config="none") as engine:
        assert len({engine.generate("Once").text for _ in range(3)}) > 1


def test_an_engine_that_is_none_is_named():
    with pytest.raises(errors.UsageError, match="embedded, llamacpp, vllm"):
        foreword.Engine(engine="tensorrt")  # type: ignore[arg-type]


def test_a_server_that_is_not_there():
    with foreword.connect("http://127.0.0.1:9/v1") as client:
        with pytest.raises(errors.EngineError, match=r"http://127.0.0.1:9 .*foreword serve"):
            client.generate("a")
        with pytest.raises(errors.EngineError, match="foreword serve"):
            list(client.stream_generate("a", task="x"))
    with pytest.raises(errors.UsageError, match="http://"):
        foreword.connect("localhost:8000")


def test_an_answer_that_is_not_from_foreword():
    def page(request: httpx.Request) -> httpx.Response:
        return httpx.Response(502, text="<html>Bad Gateway</html>")

    http = httpx.AsyncClient(transport=httpx.MockTransport(page), base_url="http://proxy")
    with Client(http, "proxy") as client, pytest.raises(errors.EngineError, match="502"):
        client.generate("a", task="x")


def test_a_stream_that_breaks_off_is_no_answer():
    def half(request: httpx.Request) -> httpx.Response:
        event = 'data: {"choices": [{"index": 0, "text": "a", "finish_reason": null}]}\n\n'
        return httpx.Response(200, text=event)

    http = httpx.AsyncClient(transport=httpx.MockTransport(half), base_url="http://half")
    with Client(http, "half") as client, pytest.raises(errors.EngineError, match="broke off"):
        list(client.stream_generate("a", task="x"))


def test_texts_may_have_several_labels_or_a_number(client, lm, bank):
    weight = torch.randn(3, lm.identity.hidden_size, generator=torch.Generator().manual_seed(1))
    several = Head(
        ("a", "b", "c"), weight, torch.tensor([30.0, -30.0, 30.0]), problem_type="multi_label_classification"
    )
    number = Head(("stars",), weight[:1], torch.tensor([3.5]), problem_type="regression")
    for name, head in (("topics", several), ("stars", number)):
        bank.publish(Task(name, "manual", empty_prefix(lm), template="{text}", head=head))
    (found,) = client.classify("hello", "topics")
    assert found.labels == tuple(label for label, prob in found.probs.items() if prob >= 0.5)
    assert sum(found.probs.values()) > 1.2
    assert found.label == max(found.probs, key=found.probs.__getitem__)
    assert repr(found).startswith("Classification('a' ")
    (rated,) = client.classify("hello", "stars")
    assert (rated.label, rated.probs, rated.labels) == ("", {}, None)
    assert repr(rated) == f"Classification(value={rated.value:.4g})"
    assert "Classification" in str(rated.overview())
