"""``foreword serve --engine llamacpp`` on the built-in file, in a process that cannot import PyTorch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import torch

pytest.importorskip("llama_cpp", reason="needs llama.cpp: make test-llamacpp")

from foreword.bank.bank import Bank
from foreword.bank.prefix_file import write_prefix
from foreword.core import Adapter, LowRank, SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.evaluation.predict import classify
from foreword.models import LanguageModel, load_model
from foreword.prompts.static import static_task
from foreword.text.task_prompts import from_messages, from_text
from served_model import CACHE_BYTES, learned

POLICY = "You are the help desk of a lamp shop. Lamps can be returned within thirty days, with the receipt. " * 6
QUESTION = [{"role": "user", "content": "Can I return a lamp after three weeks?"}]
TEXT = "The lamp on my desk"
# What a serving-only installation has not got; the program ends if anything asks for one of them.
ABSENT = ("torch", "transformers", "accelerate", "gguf", "matplotlib", "openai", "datasets")
PROGRAM = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from foreword.cli import main
main()
"""


@dataclass(frozen=True, eq=False)
class Shop:
    """The server, and what it should say."""

    url: str
    lm: LanguageModel
    bank: Bank

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def post(self, path: str, **body) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=120)


def start(*arguments: str) -> tuple[subprocess.Popen, str]:
    """The program without what is absent; its last line on stderr."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "GGML_NO_BACKTRACE": "1"})
    assert process.stderr is not None
    line = ""
    for line in process.stderr:
        if "serving" in line:
            break
    return process, line.strip()


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Iterator[Shop]:
    lm = load_model("smollm2-135m", progress=lambda line: None)
    bank = Bank(tmp_path_factory.mktemp("bank"))
    words = {"good": (" great", " fine"), "bad": (" bad",)}
    width = lm.identity.hidden_size
    factors = LowRank(torch.zeros(1, width), torch.zeros(width, 1))
    adapter = Adapter({"model.layers.0.self_attn.q_proj": factors})
    bank.publish(static_task(lm, "desk", "system", POLICY))
    bank.publish(Task("learned", "p-tuning-v2", learned(lm, 40, 1)))
    bank.publish(Task("mood", "test", learned(lm, 9, 2), template="{text}\nMood:{mask}", verbalizer=words))
    bank.publish(Task("hybrid", "lora-hybrid", learned(lm, 12, 4), adapter=adapter))
    process, line = start("serve", "--engine", "llamacpp", "--bank", bank.location, "--port", "0", "--no-ui", "--quiet")
    assert "serving" in line, line
    yield Shop(line.split(" at ")[1], lm, bank)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_system_prompt_is_answered_as_by_the_joined_text(shop):
    """llama.cpp computes the joined text itself, by quantized weights; the prefix is of the dequantized ones."""
    client = shop.client()
    joined = [{"role": "system", "content": POLICY}, *QUESTION]

    def first(model: str, messages: list) -> tuple[dict[str, float], openai.types.CompletionUsage]:
        answer = client.chat.completions.create(
            model=model, messages=messages, max_tokens=1, temperature=0, logprobs=True, top_logprobs=20
        )
        top = answer.choices[0].logprobs.content[0].top_logprobs
        return {each.token: each.logprob for each in top}, answer.usage

    found, usage = first("desk", QUESTION)
    whole, _ = first("smollm2-135m", joined)
    bare, _ = first("smollm2-135m", QUESTION)
    assert _off(found, whole) < 0.3 < _off(bare, whole)
    assert usage.prompt_tokens == len(from_messages(shop.lm.tokenizer, None, joined).token_ids)
    assert usage.prompt_tokens_details.cached_tokens > 100


def _off(one: dict[str, float], other: dict[str, float]) -> float:
    """Largest difference among the five tokens that the other finds most probable."""
    best = sorted(other, key=other.__getitem__)[-5:]
    return max(abs(one.get(token, -9.0) - other[token]) for token in best)


def test_streams_and_many_tasks_at_once(shop):
    client = shop.client()

    def ask(name: str) -> str:
        stream = client.completions.create(model=name, prompt=TEXT, max_tokens=3, temperature=0, stream=True)
        return "".join(chunk.choices[0].text for chunk in stream)

    names = ["learned", "smollm2-135m", "desk"] * 6
    with ThreadPoolExecutor(18) as pool:
        found = list(pool.map(ask, names))
    alone = [ask(name) for name in names[:3]]
    assert len(set(alone)) == 3
    # Products of quantized weights round by how much is in a batch.
    assert sum(found[n] == alone[n % 3] for n in range(18)) >= 15, (found, alone)
    with Engine(shop.lm, cache_bytes=CACHE_BYTES) as engine:
        request = Request.from_prompt(
            from_text(shop.lm.tokenizer, shop.bank.load("learned"), TEXT), SamplingParams(max_tokens=3)
        )
        assert "".join(chunk.text for chunk in engine.submit(request))[:2] == alone[0][:2]


def test_texts_are_classified(shop):
    texts = ["a fine lamp", "it broke at once", "I love it"]
    found = shop.post("/v1/classify", model="mood", input=texts).json()["data"]
    with Engine(shop.lm, cache_bytes=CACHE_BYTES) as engine:
        expected = classify(engine, shop.bank.load("mood"), [{"text": text} for text in texts])
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["probs"] == pytest.approx(theirs, abs=0.1)


def test_json_is_written_to_a_schema(shop):
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "age", "schema": schema}}
    answer = shop.client().chat.completions.create(model="desk", messages=QUESTION, max_tokens=60, response_format=form)
    assert json.loads(answer.choices[0].message.content).keys() == {"age"}


@pytest.mark.parametrize("model", ["desk", "smollm2-135m"])
def test_tools(shop: Shop, model: str) -> None:
    parameters = {
        "type": "object",
        "properties": {"days": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["days"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "return_lamp", "parameters": parameters, "strict": True}}
    named = {"type": "function", "function": {"name": "return_lamp"}}
    options = {"model": model, "messages": QUESTION, "tools": [tool], "parallel_tool_calls": False, "temperature": 0}
    for choice in (named, "required"):
        answer = shop.client().chat.completions.create(**options, tool_choice=choice, max_tokens=60).choices[0]
        assert answer.finish_reason == "tool_calls"
        (call,) = answer.message.tool_calls
        assert json.loads(call.function.arguments).keys() == {"days"}
    assert shop.client().chat.completions.create(**options, max_tokens=8).choices[0].message.content


def test_what_llama_cpp_does_not_do_is_said(shop, tmp_path):
    asked_for = {"messages": QUESTION, "max_tokens": 4}
    refused = shop.post("/v1/chat/completions", model="hybrid", **asked_for)
    assert (refused.status_code, "LoRA" in refused.text) == (400, True)
    refused = shop.post("/v1/tasks", name="new", system=POLICY)
    assert (refused.status_code, "computes no prefix" in refused.text) == (400, True)
    assert shop.post("/v1/chat/completions", model="lerned", **asked_for).status_code == 404


def test_tasks_come_and_go_without_pytorch(shop, tmp_path):
    """A prefix file is taken in, asked, and removed."""
    file = tmp_path / "prefix.safetensors"
    write_prefix(file, learned(shop.lm, 20, 9), method="test", provenance={})
    sent = httpx.post(f"{shop.url}/v1/tasks", data={"name": "sent"}, files={"prefix": file.open("rb")}, timeout=60)
    assert sent.status_code in (200, 201), sent.text
    assert shop.post("/v1/completions", model="sent", prompt=TEXT, max_tokens=4).status_code == 200
    assert shop.bank.load("sent").prefix.digest == learned(shop.lm, 20, 9).digest
    assert httpx.delete(f"{shop.url}/v1/tasks/sent").status_code in (200, 204)
    assert shop.post("/v1/completions", model="sent", prompt=TEXT, max_tokens=4).status_code == 404


def test_figures_of_the_engine_are_shown(shop):
    text = httpx.get(f"{shop.url}/metrics").text
    assert "prefixes_written" in text
    assert "free_cells" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--dtype", "float32"), "leave --dtype out"),
        (("--device", "cpu"), "leave --device out"),
        (("--multi-task-prompt", "x.json"), "foreword cache x.json"),
        (("--model", "owner/name"), "reads GGUF files"),
        (("--max-model-len", "100000"), "--max-model-len must be from 2"),
        (("--", "--mlock"), "takes no flags"),
    ],
)
def test_what_is_asked_for_and_would_be_ignored_is_refused(arguments, sentence):
    process, line = start("serve", "--engine", "llamacpp", "--port", "0", *arguments)
    assert process.wait(30) != 0
    assert sentence in line


def test_other_engines_do_not_evaluate():
    command = [sys.executable, "-m", "foreword", "eval", "x", "--data", "y.jsonl", "--engine", "vllm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "engine 'vllm' does not evaluate; choose embedded or llamacpp" in done.stderr


SST2 = Path(__file__).parents[3] / "shared" / "data" / "sst2"


@pytest.mark.skipif(not SST2.is_dir(), reason="needs the data sets in ../shared/data")
def test_sentiments_are_found_as_well_as_by_the_embedded_engine(tmp_path):
    """A task that was learned in PyTorch, on the quantized file: the accuracy differs by two points at most."""
    bank = str(tmp_path / "bank")
    template, words = r"Review: {text}\nSentiment:{mask}", '{"positive": " great", "negative": " bad"}'
    learn = ["train", "--method", "p-tuning-v2", "--data", SST2 / "train.jsonl", "--eval", SST2 / "dev.jsonl"]
    learn += ["--template", template, "--verbalizer", words, "--length", "16", "--max-steps", "40", "--batch-size", "8"]
    learn += ["--publish", "sst2", "--bank", bank, "--out", tmp_path / "run"]
    foreword(learn)
    measure = ["eval", "sst2", "--bank", bank, "--data", SST2 / "test.jsonl", "--limit", "600", "--json"]
    theirs, mine = (json.loads(foreword([*measure, "--engine", name])) for name in ("embedded", "llamacpp"))
    assert theirs["metrics"]["accuracy"] > 0.75  # it has learned something
    assert abs(mine["metrics"]["accuracy"] - theirs["metrics"]["accuracy"]) <= 0.02


def foreword(arguments) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "foreword", *map(str, arguments)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
