"""Stock ``vllm serve`` with the plugin, asked by the real OpenAI client."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import torch

from foreword.bank.bank import Bank
from foreword.core import Adapter, LowRank, SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.evaluation.predict import classify
from foreword.models import LanguageModel, load_model
from foreword.prompts.static import static_task
from foreword.text.prompt import Prompt
from foreword.text.task_prompts import from_fields, from_ids, from_messages, from_text

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from served_model import learned

BASE = "smollm2-135m"
POLICY = "You are the help desk of a lamp shop. Lamps can be returned within thirty days, with the receipt. " * 6
QUESTION = [{"role": "user", "content": "Can I return a lamp after three weeks?"}]
TEXT = "The lamp on my desk"
TOKENS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Shop:
    """The server, and what it should say."""

    url: str
    lm: LanguageModel
    bank: Bank
    log: Path

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def post(self, path: str, **body) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=120)

    def expected(self, prompts: Sequence[Prompt], **sampling) -> list[str]:
        params = SamplingParams(**{"max_tokens": TOKENS, **sampling})
        with Engine(self.lm) as engine:
            answers = list(engine.generate(Request.from_prompt(prompt, params) for prompt in prompts))
        # A character that is not complete at the end is shown by one engine and not by the other.
        return ["".join(chunk.text for chunk in chunks).removesuffix("\ufffd") for chunks in answers]


def publish_all(bank: Bank, lm: LanguageModel) -> None:
    bank.publish(Task("learned", "p-tuning-v2", learned(lm, 40, 1)))
    bank.publish(Task("other", "p-tuning-v2", learned(lm, 40, 2)))
    bank.publish(static_task(lm, "desk", "system", POLICY))
    bank.publish(static_task(lm, "story", "prompt", POLICY))
    bank.publish(Task("asks", "p-tuning-v2", learned(lm, 8, 3), template="Review: {text}\nSentiment:{mask}"))
    words = {"good": (" great",), "bad": (" awful", " dull")}
    template = "Review: {text}\nSentiment:{mask}"
    bank.publish(Task("mood", "p-tuning-v2", learned(lm, 8, 3), template=template, verbalizer=words))
    bank.publish(Task("hybrid", "lora-hybrid", learned(lm, 12, 4), adapter=adapter(lm)))


def adapter(lm: LanguageModel) -> Adapter:
    draw = torch.Generator().manual_seed(0)
    width = lm.identity.hidden_size
    names = [f"model.layers.{index}.self_attn.{name}" for index in range(30) for name in ("q_proj", "o_proj")]
    pairs = {
        name: LowRank(torch.randn(4, width, generator=draw) * 0.05, torch.randn(width, 4, generator=draw) * 0.05)
        for name in names
    }
    return Adapter(pairs, scale=1.0)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Iterator[Shop]:
    place = tmp_path_factory.mktemp("shop")
    lm, bank = load_model(dtype="float32"), Bank(place / "bank")
    publish_all(bank, lm)
    port = free_port()
    extra = "--dtype float32 --enforce-eager --max-model-len 2048 --enable-lora --max-lora-rank 8 --max-loras 2"
    tools = "--enable-prompt-tokens-details --enable-auto-tool-choice --tool-call-parser hermes"
    typed = ["serve", "--engine", "vllm", "--bank", bank.location, "--port", str(port), "--print-command", "--"]
    line = subprocess.run(
        [sys.executable, "-m", "foreword", *typed, *shlex.split(extra), *shlex.split(tools)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    plugins, program, *arguments = shlex.split(line)
    name, value = plugins.split("=")
    log = place / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [str(Path(sys.executable).with_name(program)), *arguments],
            env={**os.environ, name: value},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield Shop(f"http://127.0.0.1:{port}", lm, bank, log)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(url: str, server: subprocess.Popen, log: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-4000:])


def test_tasks_are_models(shop):
    found = shop.client().models.list().data
    assert found[0].id == BASE
    assert [each.id for each in found[1:]] == ["asks", "desk", "hybrid", "learned", "mood", "other", "story"]
    assert all(each.parent == BASE for each in found[1:])  # as vLLM shows a LoRA


@pytest.mark.parametrize("name", ["learned", "other", "desk", "story", "asks", "hybrid"])
def test_chat_answers_as_the_embedded_engine(shop, name):
    task = shop.bank.load(name)
    (expected,) = shop.expected([from_messages(shop.lm.tokenizer, task, QUESTION)])
    answer = shop.client().chat.completions.create(model=name, messages=QUESTION, temperature=0, max_tokens=TOKENS)
    assert answer.choices[0].message.content.strip() == expected.strip()
    assert answer.model == name
    assert not (answer.model_extra or {}).get("kv_transfer_params")


@pytest.mark.parametrize("name", ["learned", "desk", "story", "hybrid"])
def test_completions_answer_as_the_embedded_engine(shop, name):
    task = shop.bank.load(name)
    ids = shop.lm.tokenizer(TEXT).input_ids
    for given, prompt in ((TEXT, from_text(shop.lm.tokenizer, task, TEXT)), (ids, from_ids(task, ids))):
        (expected,) = shop.expected([prompt])
        answer = shop.client().completions.create(model=name, prompt=given, temperature=0, max_tokens=TOKENS)
        assert answer.choices[0].text == expected
        assert answer.model == name


def test_the_base_model_is_itself_and_not_a_task_s(shop):
    (expected,) = shop.expected([from_text(shop.lm.tokenizer, None, TEXT)])
    answer = shop.client().completions.create(model=BASE, prompt=TEXT, temperature=0, max_tokens=TOKENS)
    assert answer.choices[0].text == expected


def test_tasks_with_and_without_a_lora_run_in_one_batch(shop):
    names = ["hybrid", BASE, "learned", "desk"] * 3
    tasks = {name: None if name == BASE else shop.bank.load(name) for name in set(names)}
    expected = dict(
        zip(tasks, shop.expected([from_text(shop.lm.tokenizer, t, TEXT) for t in tasks.values()]), strict=True)
    )

    def ask(name: str) -> str:
        answer = shop.client().completions.create(model=name, prompt=TEXT, temperature=0, max_tokens=TOKENS)
        assert answer.model == name
        return answer.choices[0].text

    with ThreadPoolExecutor(len(names)) as pool:
        assert list(pool.map(ask, names)) == [expected[name] for name in names]
    shown = [each.id for each in shop.client().models.list().data]
    assert not [name for name in shown if "adapter" in name]  # a LoRA alone is nobody's model


def test_many_prompts_in_one_request(shop):
    texts = [TEXT, "Once upon a time", "!"]
    for name in ("learned", "story"):
        task = shop.bank.load(name)
        expected = shop.expected([from_text(shop.lm.tokenizer, task, text) for text in texts])
        answer = shop.client().completions.create(model=name, prompt=texts, temperature=0, max_tokens=TOKENS)
        assert [choice.text for choice in answer.choices] == expected


@pytest.mark.parametrize("name", ["learned", "desk"])
def test_streams_are_named_and_whole(shop, name):
    whole = shop.client().chat.completions.create(model=name, messages=QUESTION, temperature=0, max_tokens=TOKENS)
    stream = shop.client().chat.completions.create(
        model=name,
        messages=QUESTION,
        temperature=0,
        max_tokens=TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert {chunk.model for chunk in chunks} == {name}
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_prefix_counts_as_cached(shop):
    for name in ("desk", "learned"):
        task = shop.bank.load(name)
        answer = shop.client().chat.completions.create(model=name, messages=QUESTION, max_tokens=1)
        assert answer.usage.prompt_tokens_details.cached_tokens >= task.prefix.length - 1


def test_placeholders_are_not_shown(shop):
    ids = shop.lm.tokenizer(TEXT).input_ids
    body = {"prompt": ids, "max_tokens": 2, "return_token_ids": True}
    answer = shop.post("/v1/completions", model="learned", **body).json()
    assert answer["choices"][0]["prompt_token_ids"] == ids


def test_what_the_request_may_still_ask(shop):
    client = shop.client()
    answer = client.chat.completions.create(
        model="desk", messages=QUESTION, n=2, seed=3, temperature=0.8, logprobs=True, top_logprobs=2, max_tokens=4
    )
    assert len(answer.choices) == 2
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    schema = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
    answer = client.chat.completions.create(
        model="learned",
        messages=QUESTION,
        temperature=0,
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "days", "schema": schema}},
    )
    assert isinstance(json.loads(answer.choices[0].message.content)["days"], int)


@pytest.mark.parametrize("model", [BASE, "desk"])
def test_tools_are_called(shop, model):
    days = {"type": "object", "properties": {"days": {"enum": [7, 21]}}, "required": ["days"]}
    answer = shop.client().chat.completions.create(
        model=model,
        messages=QUESTION,
        tools=[{"type": "function", "function": {"name": "return_lamp", "parameters": days}}],
        tool_choice={"type": "function", "function": {"name": "return_lamp"}},
        temperature=0,
        max_tokens=300,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "return_lamp"


def test_prompt_logprobs_behind_a_static_prefix_are_those_of_the_joined_text(shop):
    body = {"prompt": TEXT, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    answer = shop.post("/v1/completions", model="story", **body).json()
    whole = POLICY + TEXT
    base = shop.post("/v1/completions", model=BASE, **{**body, "prompt": whole}).json()
    mine, theirs = (
        [next(iter(entry.values()))["logprob"] for entry in each["choices"][0]["prompt_logprobs"] if entry]
        for each in (answer, base)
    )
    assert mine == pytest.approx(theirs, abs=1e-3)
    # What was computed so is the right thing to share.
    (expected,) = shop.expected([from_text(shop.lm.tokenizer, shop.bank.load("story"), TEXT)])
    again = shop.client().completions.create(model="story", prompt=TEXT, temperature=0, max_tokens=TOKENS)
    assert again.choices[0].text == expected


@pytest.mark.parametrize(
    ("model", "option"),
    [
        ("learned", {"prompt_logprobs": 0}),
        ("learned", {"echo": True}),
        ("learned", {"echo": True, "logprobs": 1}),
        ("learned", {"vllm_xargs": {"skip_reading_prefix_cache": 1}}),
        ("learned", {"use_beam_search": True}),
        ("learned", {"cache_salt": "mine"}),
        ("learned", {"truncate_prompt_tokens": 3}),
        ("learned", {"kv_transfer_params": {"foreword": {}}}),
        (BASE, {"kv_transfer_params": {"do_remote_decode": True}}),
        ("learned", {"prompt": []}),
        ("learned", {"prompt": ""}),
    ],
    ids=str,
)
def test_options_that_would_go_wrong_are_400(shop, model, option):
    answer = shop.post("/v1/completions", **{"model": model, "prompt": TEXT, "max_tokens": 2, **option})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("model", "option", "why"),
    [
        ("asks", {"tools": [{"type": "function", "function": {"name": "return_lamp"}}]}, "tools"),
        ("asks", {"chat_template": "{{ messages }}"}, "chat_template"),
        ("asks", {"add_generation_prompt": False}, "add_generation_prompt"),
        ("story", {"add_generation_prompt": False}, "add_generation_prompt"),
        ("story", {"continue_final_message": True, "add_generation_prompt": False}, "continue_final_message"),
    ],
    ids=str,
)
def test_options_of_the_chat_template_are_refused_where_none_is_used(shop, model, option, why):
    asked = {"model": model, "messages": QUESTION, "max_tokens": 2}
    answer = shop.post("/v1/chat/completions", **asked, **option)
    assert answer.status_code == 400, answer.text
    assert why in answer.json()["error"]["message"]
    assert shop.post("/v1/chat/completions", **asked).status_code == 200


def test_special_tokens_are_the_task_s_own_affair(shop):
    answer = shop.post("/v1/completions", model="learned", prompt=TEXT, max_tokens=2, add_special_tokens=False)
    assert answer.status_code == 400
    assert "add_special_tokens" in answer.json()["error"]["message"]


def test_no_name_is_served_as_the_base_model(shop):
    for call in (
        lambda: shop.client().completions.create(model="lerned", prompt=TEXT),
        lambda: shop.client().chat.completions.create(model="lerned", messages=QUESTION),
    ):
        with pytest.raises(openai.NotFoundError, match="did you mean learned"):
            call()
    # Nor does another route take a task's LoRA, or a prefix that a client names by itself.
    note = {"source": shop.bank.load("learned").prefix.source, "digest": "0", "length": 4, "learned": True, "key": "k"}
    forged = shop.post(
        "/v1/messages",
        model=BASE,
        messages=QUESTION,
        max_tokens=4,
        kv_transfer_params={"foreword": note},
    )
    assert forged.status_code >= 400
    assert shop.post("/v1/messages", model="hybrid", messages=QUESTION, max_tokens=4).status_code == 404


def test_images_are_refused_and_not_left_to_the_bare_model(shop):
    content = [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]
    answer = shop.post("/v1/chat/completions", model="learned", messages=[{"role": "user", "content": content}])
    assert answer.status_code == 400


def test_what_is_published_is_served_at_once(shop):
    client = shop.client()
    shop.bank.publish(Task("fresh", "p-tuning-v2", learned(shop.lm, 20, 7)))
    for seed in (8, 9):
        task = shop.bank.load(shop.bank.publish(Task("fresh", "p-tuning-v2", learned(shop.lm, 20, seed))).ref)
        (expected,) = shop.expected([from_text(shop.lm.tokenizer, task, TEXT)])
        answer = client.completions.create(model="fresh", prompt=TEXT, temperature=0, max_tokens=TOKENS)
        assert answer.choices[0].text == expected


def test_a_template_takes_one_message(shop):
    task = shop.bank.load("asks")
    (expected,) = shop.expected([from_fields(shop.lm.tokenizer, task, {"text": "dull"})])
    ask = shop.client().chat.completions.create
    answer = ask(model="asks", messages=[{"role": "user", "content": "dull"}], temperature=0, max_tokens=TOKENS)
    assert answer.choices[0].message.content.strip() == expected.strip()
    with pytest.raises(openai.BadRequestError, match="answers one user message"):
        ask(model="asks", messages=[*QUESTION, *QUESTION])


def test_a_task_that_labels_answers_its_label(shop):
    task, texts = shop.bank.load("mood"), ["a fine day", "rain", "lovely soup"]
    with Engine(shop.lm) as engine:
        probs = classify(engine, task, [{"text": text} for text in texts])
    words = [{"good": " great", "bad": " awful"}[max(row, key=row.__getitem__)] for row in probs]
    client = shop.client()
    found = client.completions.create(model="mood", prompt=texts, logprobs=2)
    assert [choice.text for choice in found.choices] == words
    assert found.choices[0].logprobs.token_logprobs == [pytest.approx(math.log(max(probs[0].values())), abs=1e-3)]
    for text, word in zip(texts, words, strict=True):
        asked = {"model": "mood", "messages": [{"role": "user", "content": text}]}
        answer = client.chat.completions.create(**asked)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (word.strip(), "stop")
        events = list(client.chat.completions.create(**asked, stream=True))
        assert "".join(event.choices[0].delta.content or "" for event in events) == word.strip()
    refused = shop.post("/v1/completions", model="mood", prompt="x", temperature=-1)
    assert refused.status_code == 400


def test_a_learned_task_is_greedy_without_being_told(shop):
    answers = [shop.client().completions.create(model="learned", prompt=TEXT, max_tokens=TOKENS) for _ in range(2)]
    expected = shop.expected([from_text(shop.lm.tokenizer, shop.bank.load("learned"), TEXT)])
    assert [answer.choices[0].text for answer in answers] == expected * 2
