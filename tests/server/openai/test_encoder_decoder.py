"""Encoder-decoders behind a real socket: learned, published, and asked by the `openai` client beside one another."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch

from foreword.bank.bank import Bank
from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.training.train import train
from server.running_server import RunningServer
from tiny_encoder_decoders import END, FAMILIES, random_model, stock_logits, tiny_encoder_decoder
from training.small_data import examples, recipe, write_jsonl

TEXTS = ("xya", "zzyxb", "ya", "xxxxxxxxb")


@pytest.fixture(scope="module", params=FAMILIES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A prompt and a prefix that were learned on answers, and a prefix on labels."""
    folder = tmp_path_factory.mktemp("seq2seq")
    lm, bank = tiny_encoder_decoder(request.param), Bank(folder / "bank")
    answers = {"a": "yes", "b": "no"}
    data = write_jsonl(folder / "words.jsonl", examples(32, 1, answers))
    held = write_jsonl(folder / "held.jsonl", examples(8, 2, answers))
    written = {"template": "{text}{target:label}", "data": data, "eval": held}
    settings = {
        "prompt": {"method": "prompt-tuning", "length": 4, "lr": 0.3, "max_steps": 10, **written},
        "prefix": {"method": "p-tuning-v2", "length": 6, "lr": 0.1, "max_steps": 10, "init": "auto", **written},
        "rule": {"method": "p-tuning-v2", "length": 4, "lr": 0.1, "max_steps": 5},
    }
    for name, each in settings.items():
        (folder / name).mkdir()
        bank.publish(train(lm, recipe(folder / name, **each), name=name).task)
    with Engine(lm) as engine, serve_in_background(create_app(engine, bank)) as url:
        yield RunningServer(url, lm, engine, bank)


def plain_answer(server: RunningServer, task: Task | None, text: str, max_tokens: int) -> str:
    """The greedy answer of Transformers alone, with the task's embeddings or keys and values."""
    lm = server.lm
    family = lm.name.removeprefix("tiny-")
    model, ids = random_model(family), lm.tokenizer(text).input_ids
    own = model.get_input_embeddings()(torch.tensor([ids]))
    soft = task.soft if task is not None else None
    rows = own if soft is None else torch.cat([soft[None], own], dim=1)
    prefix = task.prefix if task is not None and task.prefix.length else None
    answer: list[int] = []
    while len(answer) < max_tokens and (not answer or answer[-1] != END):
        answer.append(int(stock_logits(family, model, rows, answer, prefix)[-1].argmax()))
    return lm.tokenizer.decode([token for token in answer if token != END], skip_special_tokens=True)


def test_tasks_answer_beside_one_another(served: RunningServer):
    """A prompt, a prefix and the base model, asked at once."""
    with served.client() as client, ThreadPoolExecutor(12) as pool:

        def ask(model: str, text: str) -> str:
            made = client.completions.create(model=model, prompt=text, max_tokens=5, temperature=0)
            return made.choices[0].text

        asked = [(name, text) for text in TEXTS for name in ("prompt", "prefix", served.lm.name)]
        answers = list(pool.map(lambda each: ask(*each), asked))
    tasks = {name: served.bank.load(name) for name in ("prompt", "prefix")}
    assert answers == [plain_answer(served, tasks.get(name), text, 5) for name, text in asked]
    assert len(set(answers)) > 2


def test_labels_are_answered_and_classified(served: RunningServer):
    with served.client() as client:
        answers = [
            client.completions.create(model="rule", prompt=text, temperature=0).choices[0].text for text in TEXTS
        ]
        body = {"model": "rule", "input": [*TEXTS[:2], *({"text": text} for text in TEXTS[2:])]}
        found = httpx.post(f"{served.url}/v1/classify", json=body).raise_for_status().json()
    assert [answer.strip() for answer in answers] == [each["label"] for each in found["data"]]


def test_answers_stream_with_logprobs_and_several_choices(served: RunningServer):
    with served.client() as client:
        options = {
            "model": "prefix",
            "prompt": TEXTS[0],
            "max_tokens": 4,
            "temperature": 0,
            "extra_body": {"ignore_eos": True},
        }
        whole = client.completions.create(**options, n=2, logprobs=2)
        pieces = list(client.completions.create(**options, stream=True))
        sampled = client.completions.create(**{**options, "temperature": 1.0}, seed=3)
        again = client.completions.create(**{**options, "temperature": 1.0}, seed=3)
        chat = client.chat.completions.create(
            model="prefix", messages=[{"role": "user", "content": TEXTS[0]}], max_tokens=4, temperature=0
        )
    fields = {"model": "prefix", "inputs": {"text": TEXTS[0]}, "max_tokens": 4, "temperature": 0}
    by_fields = httpx.post(f"{served.url}/v1/completions", json=fields).raise_for_status().json()["choices"][0]["text"]
    assert whole.choices[0].text == whole.choices[1].text == "".join(each.choices[0].text for each in pieces)
    assert len(whole.choices[0].logprobs.token_logprobs) == 4
    assert sampled.choices[0].text == again.choices[0].text
    assert chat.choices[0].message.content == by_fields
    assert by_fields == plain_answer(served, served.bank.load("prefix"), TEXTS[0], 4)


def test_what_an_encoder_decoder_has_not_is_refused_by_name(served: RunningServer):
    with served.client() as client:
        with pytest.raises(openai.BadRequestError, match="leave echo and prompt_logprobs out"):
            client.completions.create(model=served.lm.name, prompt="xy", echo=True, logprobs=1, max_tokens=1)
        with pytest.raises(openai.BadRequestError, match="embeds nothing here; use an encoder"):
            client.embeddings.create(model=served.lm.name, input="xy")
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model=served.lm.name, messages=[{"role": "user", "content": "xy"}])
        with pytest.raises(openai.BadRequestError, match="soft tokens inside its template"):
            client.completions.create(model="prompt", prompt=[5, 6])
