"""A task that labels answers the word of the label that ``/v1/classify`` finds best, on every route."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import statistics
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from evaluation.test_masked_models import masked_model
from foreword.bank.bank import Bank
from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.evaluation.predict import classify as label_probabilities
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.text.verbalizer import Verbalizer
from server.running_server import RunningServer, label_task, learned_prefix, wait_until

WORDS = {"good": " up", "bad": " no"}
TEXTS = [f"text number {n}" for n in range(12)]


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def classify(server: RunningServer, value: Any, model: str = "swing") -> dict[str, float]:
    found = httpx.post(f"{server.url}/v1/classify", json={"model": model, "input": value})
    return found.raise_for_status().json()["data"][0]["probs"]


@pytest.fixture(scope="module", autouse=True)
def swing(server: RunningServer) -> Task:
    """A task calibrated so that it answers both of its labels."""
    lm = server.lm
    task = dataclasses.replace(label_task(lm, "swing"), verbalizer={label: (word,) for label, word in WORDS.items()})
    probs = label_probabilities(server.engine, task, [{"text": text} for text in TEXTS])
    bias = {label: statistics.median(math.log(row[label]) for row in probs) for label in WORDS}
    server.bank.publish(dataclasses.replace(task, bias=bias))
    return server.bank.load("swing")


def best_word(probs: dict[str, float]) -> str:
    return WORDS[max(probs, key=probs.__getitem__)]


@pytest.fixture(scope="module")
def words(server: RunningServer) -> dict[str, str]:
    """The right answer to every text; both labels occur."""
    found = {text: best_word(classify(server, text)) for text in TEXTS}
    assert set(found.values()) == set(WORDS.values())
    return found


def test_chat_answers_the_word(client: openai.OpenAI, words: dict[str, str]) -> None:
    for text, word in words.items():
        answer = client.chat.completions.create(model="swing", messages=user(text), temperature=1.5, seed=3)
        assert answer.choices[0].message.content == word.strip()
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len(word)  # a byte is a token
        assert answer.usage.prompt_tokens == 5 + len(text) + len("\nMood:")


def test_completions_answer_the_word_verbatim(client: openai.OpenAI, words: dict[str, str]) -> None:
    answer = client.completions.create(model="swing", prompt=TEXTS)
    assert [choice.text for choice in answer.choices] == list(words.values())
    worded = client.completions.create(model="swing", prompt=[f"{text}\nMood:" for text in TEXTS])
    assert [choice.text for choice in worded.choices] == list(words.values())
    ids = client.completions.create(model="swing", prompt=[*b"text number 1\nMood:"])
    assert ids.choices[0].text == words[TEXTS[1]]


def test_inputs_answer_the_word(client: openai.OpenAI, server: RunningServer) -> None:
    fields = {"first": "a", "second": "b"}
    answer = client.completions.create(model="pair", prompt=None, extra_body={"inputs": fields})  # type: ignore[arg-type]
    probs = classify(server, fields, "pair")
    assert answer.choices[0].text == {"good": " yes", "bad": " no"}[max(probs, key=probs.__getitem__)]
    worded = client.completions.create(model="pair", prompt="a / b:")
    assert worded.choices[0].text == answer.choices[0].text
    with pytest.raises(openai.BadRequestError, match="fills the fields first and second; send inputs"):
        client.completions.create(model="pair", prompt="neither nor")


def test_streams_send_one_chunk(client: openai.OpenAI, words: dict[str, str]) -> None:
    for text, word in words.items():
        options: Any = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(model="swing", messages=user(text), **options))
        choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
        assert [choice.delta.content for choice in choices if choice.delta.content] == [word.strip()]
        assert choices[-1].finish_reason == "stop"
        assert chunks[-1].usage.completion_tokens == len(word)
        events = list(client.completions.create(model="swing", prompt=text, stream=True))
        assert [(event.choices[0].text, event.choices[0].finish_reason) for event in events] == [(word, "stop")]


def test_logprobs_are_over_the_labels(client: openai.OpenAI, server: RunningServer) -> None:
    probs = classify(server, "text number 1")
    ranked = sorted(probs, key=probs.__getitem__, reverse=True)
    options: Any = {"logprobs": True, "top_logprobs": 5}
    answer = client.chat.completions.create(model="swing", messages=user("text number 1"), **options)
    assert answer.choices[0].logprobs is not None
    (entry,) = answer.choices[0].logprobs.content or []
    assert [top.token for top in entry.top_logprobs] == [WORDS[label].strip() for label in ranked]
    assert entry.token == answer.choices[0].message.content
    for top, label in zip(entry.top_logprobs, ranked, strict=True):
        assert top.logprob == pytest.approx(math.log(probs[label]), abs=1e-5)
        assert bytes(top.bytes or []).decode() == top.token
    text = client.completions.create(model="swing", prompt="text number 1", logprobs=1)
    found = text.choices[0].logprobs
    assert found is not None
    assert found.tokens == [WORDS[ranked[0]]]
    assert found.top_logprobs == [{WORDS[ranked[0]]: pytest.approx(entry.logprob)}]


def test_several_answers_are_one_score(client: openai.OpenAI, server: RunningServer, words: dict[str, str]) -> None:
    before = server.engine.statistics()["scored"]
    answer = client.chat.completions.create(model="swing", messages=user(TEXTS[0]), n=3)
    assert [choice.message.content for choice in answer.choices] == [words[TEXTS[0]].strip()] * 3
    assert server.engine.statistics()["scored"] == before + 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3 * len(words[TEXTS[0]])


def test_max_tokens_cuts_the_word(client: openai.OpenAI, words: dict[str, str]) -> None:
    answer = client.completions.create(model="swing", prompt=TEXTS[0], max_tokens=2)
    assert answer.choices[0].text == words[TEXTS[0]][:2]
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1}, "temperature"),
        ({"structured_outputs": {"choice": ["x"]}}, "answers one of its labels (good, bad)"),
        ({"prompt": "x" * 300}, "the context of 256 has no room"),
        ({"prompt": [299, 300]}, "token id 300 is outside"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_asked_is_refused(server: RunningServer, options: dict, said: str, stream: bool) -> None:
    body = {"model": "swing", "prompt": "a", "stream": stream, **options}
    answer = httpx.post(f"{server.url}/v1/completions", json=body)
    if stream and "token id" in said:  # known when it is scored
        assert said in answer.text
        assert "invalid_request" in answer.text
        return
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_calibration_and_ensembles_decide_as_in_classify(
    server: RunningServer, client: openai.OpenAI, swing: Task
) -> None:
    lm = server.lm
    plain = dataclasses.replace(swing, name="plain", bias=None)
    probs = classify(server, "text number 1")
    bias = {label: 50.0 if prob == max(probs.values()) else -50.0 for label, prob in probs.items()}
    server.bank.publish(dataclasses.replace(plain, name="calibrated", bias=bias))
    others = tuple(learned_prefix(lm.identity, seed=seed) for seed in (11, 12))
    for combine in ("mean", "vote"):
        server.bank.publish(dataclasses.replace(plain, name=f"jury-{combine}", members=others, combine=combine))
    for name in ("calibrated", "jury-mean", "jury-vote"):
        for text in TEXTS[:6]:
            answer = client.chat.completions.create(model=name, messages=user(text))
            assert answer.choices[0].message.content == best_word(classify(server, text, name)).strip()
    base = client.chat.completions.create(model="swing", messages=user("text number 1")).choices[0].message.content
    turned = client.chat.completions.create(model="calibrated", messages=user("text number 1"))
    assert turned.choices[0].message.content != base
    for name in ("calibrated", "jury-mean", "jury-vote"):
        server.bank.remove(name)


def test_many_at_once_beside_others(server: RunningServer, words: dict[str, str]) -> None:
    async def ask_all() -> list[str]:
        async with server.async_client() as client:
            poem = asyncio.create_task(client.completions.create(model="poet", prompt="Hi", max_tokens=100))
            asked = [client.chat.completions.create(model="swing", messages=user(text)) for text in TEXTS * 4]
            answers = await asyncio.gather(*asked)
            await poem
            return [answer.choices[0].message.content or "" for answer in answers]

    assert asyncio.run(ask_all()) == [word.strip() for word in words.values()] * 4


def test_tokens_are_counted(server: RunningServer, client: openai.OpenAI) -> None:
    def counted(name: str) -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f'{name}{{task="swing"')), 0.0)

    before = counted("foreword_answer_tokens_total")
    answer = client.chat.completions.create(model="swing", messages=user("text number 1"))
    assert answer.usage is not None
    assert counted("foreword_answer_tokens_total") == before + answer.usage.completion_tokens


def test_a_label_that_takes_too_long(tmp_path, server: RunningServer) -> None:
    bank = Bank(tmp_path)
    bank.publish(label_task(server.lm))
    with Engine(server.lm, cache_bytes=1 << 22, start=False) as stuck:  # it never steps
        with serve_in_background(create_app(stuck, bank, timeout=0.2)) as url:
            body = {"model": "mood", "messages": user("a")}
            late = httpx.post(f"{url}/v1/chat/completions", json=body)
            assert late.status_code == 504
            assert late.json()["error"]["code"] == "timeout"
        stuck.close()


def test_a_broken_prefix_is_an_error_of_its_request_alone(server: RunningServer, client: openai.OpenAI, words) -> None:
    good = label_task(server.lm, "broken")
    values = tuple(value.clone().fill_(3e38) for value in good.prefix.values)
    server.bank.publish(dataclasses.replace(good, prefix=dataclasses.replace(good.prefix, values=values)))
    with pytest.raises(openai.InternalServerError, match="no finite scores"):
        client.chat.completions.create(model="broken", messages=user("a"))
    answer = client.chat.completions.create(model="swing", messages=user(TEXTS[0]))
    assert answer.choices[0].message.content == words[TEXTS[0]].strip()
    server.bank.remove("broken")


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A masked model with a verbalizer, which writes nothing but labels."""
    lm, bank = masked_model("bert"), Bank(tmp_path_factory.mktemp("bank"))
    template = "a {text} film, it is {mask}. label"
    words = Verbalizer.parse({"good": " fine", "bad": " dull"}).words
    bank.publish(Task("masked", "p-tuning-v2", learned_prefix(lm.identity), template=template, verbalizer=words))
    with (
        Engine(lm, cache_bytes=1 << 20) as engine,
        serve_in_background(create_app(engine, bank)) as url,
        httpx.Client(base_url=url) as client,
    ):
        yield client


def test_an_encoder_answers_its_labels_too(masked: httpx.Client) -> None:
    found = masked.post("/v1/classify", json={"model": "masked", "input": "a fine day"}).json()
    word = {"good": " fine", "bad": " dull"}[found["data"][0]["label"]]
    chat = masked.post("/v1/chat/completions", json={"model": "masked", "messages": user("a fine day")}).json()
    assert chat["choices"][0]["message"]["content"] == word.strip()
    text = masked.post("/v1/completions", json={"model": "masked", "prompt": "a fine day"}).json()
    assert text["choices"][0]["text"] == word
    ids = masked.post("/v1/completions", json={"model": "masked", "prompt": [1, 2]})
    assert ids.status_code == 400
    assert "needs its mask" in json.dumps(ids.json())


def test_cancelled_before_it_is_scored(server: RunningServer) -> None:
    from foreword.core import SamplingParams
    from foreword.evaluation.answers import Answers
    from foreword.text import task_prompts

    task = label_task(server.lm)
    with Engine(server.lm, cache_bytes=1 << 22, start=False) as engine:
        answers = Answers(engine)
        prompt = task_prompts.from_text(server.lm.tokenizer, task, "a")
        (first,) = answers.submit(task, prompt, SamplingParams())
        wait_until(lambda: not answers._pending[""])
        (second,) = answers.submit(task, prompt, SamplingParams())
        second.cancel()
        assert [chunk.finish_reason for chunk in second] == ["cancelled"]
        first.cancel()


def test_responses_answer_the_word_too(client: openai.OpenAI, words: dict[str, str]) -> None:
    answer = client.responses.create(model="swing", input=TEXTS[0])
    assert answer.output_text == words[TEXTS[0]].strip()
    assert answer.status == "completed"
