"""Chat and text completions through OpenAI's own client, complete and streamed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from foreword.engine.cache import PAGE_SIZE
from server.running_server import PROMPT_TEXT, SYSTEM_TEXT, RunningServer, learned_task, wait_until

IDS = {"return_token_ids": True}
HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Hello"}]
TASKS = ("tiny-llama", "poet", "story", "kind")


def ids_of(choice: Any) -> list[int]:
    """Generated ids; OpenAI's types do not know the field."""
    return choice.model_extra["token_ids"]


def prompt_ids_of(choice: Any) -> list[int]:
    return choice.model_extra["prompt_token_ids"]


@pytest.mark.parametrize("model", TASKS)
def test_chat(client: openai.OpenAI, server: RunningServer, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=8, temperature=0)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == model
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    ref = model if model == "tiny-llama" else f"{model}@{server.bank.current(model)}"
    assert answer.system_fingerprint == ref


@pytest.mark.parametrize("model", TASKS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streamed_chat_is_the_whole_chat(client: openai.OpenAI, model: str, temperature: float) -> None:
    options: dict[str, Any] = {
        "model": model,
        "messages": HELLO,
        "max_tokens": 12,
        "temperature": temperature,
        "seed": 3,
    }
    whole = client.chat.completions.create(**options, extra_body=IDS)
    stream_options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options=stream_options, extra_body=IDS))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert prompt_ids_of(chunks[0].choices[0]) == prompt_ids_of(whole.choices[0])
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    extras = [choice.model_extra or {} for choice in choices]
    generated = [token for extra in extras for token in extra.get("token_ids", [])]
    assert generated == ids_of(whole.choices[0])
    assert [c.finish_reason for c in choices if c.finish_reason] == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    # The second finds the prompt of the first in the cache.
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("model", TASKS)
def test_streamed_completion_is_the_whole_completion(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"model": model, "prompt": ["One", "Two"], "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**options)
    texts: list[str] = ["", ""]
    reasons: list[str | None] = [None, None]
    for chunk in client.completions.create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]


def test_events_are_written_as_openai_writes_them(server: RunningServer) -> None:
    body = {"model": "tiny-llama", "messages": HELLO, "max_tokens": 3, "stream": True}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert all(event.startswith("data: ") for event in events[:-1])
    assert events[-2:] == ["data: [DONE]", ""]
    first, last = json.loads(events[0][6:]), json.loads(events[-3][6:])
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["delta"] == {}
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert "usage" not in first


def test_static_prompt_answers_as_the_joined_text(client: openai.OpenAI, server: RunningServer) -> None:
    options: dict[str, Any] = {"max_tokens": 16, "temperature": 0, "extra_body": IDS}
    task = client.completions.create(model="story", prompt="there was", **options)
    base = client.completions.create(model=server.engine.name, prompt=PROMPT_TEXT + "there was", **options)
    assert ids_of(task.choices[0]) == ids_of(base.choices[0])
    assert prompt_ids_of(task.choices[0]) == prompt_ids_of(base.choices[0])
    assert task.usage is not None
    assert base.usage is not None
    assert task.usage.prompt_tokens == base.usage.prompt_tokens == len(PROMPT_TEXT + "there was")
    assert task.usage.prompt_tokens_details is not None
    assert task.usage.prompt_tokens_details.cached_tokens == len(PROMPT_TEXT)


def test_cached_tokens_of_a_conversation_that_goes_on(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "poet", "max_tokens": 1, "temperature": 0}
    text = "One evening an old lamp was found again in a drawer."
    client.completions.create(prompt=text, **options)
    again = client.completions.create(prompt=text + " It was lit.", **options)
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == 5 + len(text) // PAGE_SIZE * PAGE_SIZE


def test_static_system_answers_as_the_system_turn(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"max_tokens": 16, "temperature": 0, "extra_body": IDS}
    task = client.chat.completions.create(model="kind", messages=HELLO, **options)
    turns: Any = [{"role": "system", "content": SYSTEM_TEXT}, *HELLO]
    base = client.chat.completions.create(model="tiny-llama", messages=turns, **options)
    assert ids_of(task.choices[0]) == ids_of(base.choices[0])
    assert prompt_ids_of(task.choices[0]) == prompt_ids_of(base.choices[0])


def test_a_learned_prefix_changes_the_answer_and_counts(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"prompt": "Hello", "max_tokens": 16, "temperature": 0}
    task = client.completions.create(model="poet", **options)
    base = client.completions.create(model="tiny-llama", **options)
    assert task.choices[0].text != base.choices[0].text
    assert task.usage is not None
    assert (task.usage.prompt_tokens, task.usage.total_tokens - task.usage.completion_tokens) == (10, 10)
    assert task.usage.prompt_tokens_details is not None
    assert task.usage.prompt_tokens_details.cached_tokens == 5


def test_seeds_repeat(client: openai.OpenAI) -> None:
    def text(seed: int) -> str:
        answer = client.completions.create(model="poet", prompt="Hi", max_tokens=16, temperature=1, seed=seed)
        return answer.choices[0].text

    assert text(5) == text(5)
    assert len({text(seed) for seed in range(4)}) > 1


def test_defaults_are_greedy_for_learned_tasks_only(client: openai.OpenAI) -> None:
    def texts(model: str) -> set[str]:
        answer = client.completions.create(model=model, prompt=["Hi"] * 6)
        return {choice.text for choice in answer.choices}

    assert len(texts("poet")) == 1
    assert len(texts("tiny-llama")) > 1
    assert len(texts("story")) > 1


def test_default_lengths(client: openai.OpenAI, server: RunningServer) -> None:
    endless = {"ignore_eos": True}
    completion = client.completions.create(model="tiny-llama", prompt="Hi", extra_body=endless)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 16
    chat = client.chat.completions.create(model="tiny-llama", messages=HELLO, extra_body=endless)
    assert chat.usage is not None
    assert chat.usage.total_tokens == server.engine.context


def test_stop(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny-llama", "prompt": "Hello there", "temperature": 0}
    whole = client.completions.create(**options, max_tokens=24).choices[0].text
    stop = next(char for char in whole[2:] if char not in whole[:2] and char != "\ufffd")
    cut = client.completions.create(**options, max_tokens=24, stop=[stop, "never"])
    assert cut.choices[0].text == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert client.completions.create(**options, max_tokens=24, stop=stop).choices[0].text == cut.choices[0].text


def test_stop_token_ids(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "poet", "prompt": "Hello", "temperature": 0, "max_tokens": 8}
    ids = ids_of(client.completions.create(**options, extra_body=IDS).choices[0])
    cut = client.completions.create(**options, extra_body={**IDS, "stop_token_ids": [ids[2]]})
    assert ids_of(cut.choices[0]) == ids[: ids.index(ids[2]) + 1]
    assert cut.choices[0].finish_reason == "stop"


def test_prompts_of_all_kinds(client: openai.OpenAI, server: RunningServer) -> None:
    options: dict[str, Any] = {"model": "poet", "temperature": 0, "max_tokens": 8}
    texts = ["Hello", "World!"]
    ids = [server.lm.tokenizer.encode(text) for text in texts]
    alone = [client.completions.create(prompt=text, **options).choices[0].text for text in texts]
    for prompt in (texts, ids):
        answer = client.completions.create(prompt=prompt, **options)
        assert [choice.text for choice in answer.choices] == alone
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 5 + 5 + 5 + 6
    assert client.completions.create(prompt=ids[0], **options).choices[0].text == alone[0]


def test_inputs_fill_the_template(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "link", "temperature": 0, "max_tokens": 8}
    fields = {"inputs": {"first": "a", "second": "b"}}
    filled = client.completions.create(prompt=None, **options, extra_body=fields)  # type: ignore[arg-type]
    assert filled.choices[0].text == client.completions.create(prompt="a -> b:", **options).choices[0].text


def test_chat_fills_the_only_field(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "rhyme", "temperature": 0, "max_tokens": 8}
    chat = client.chat.completions.create(messages=HELLO, **options)
    text = client.completions.create(prompt="Hello rhymes with", **options)
    assert chat.choices[0].message.content == text.choices[0].text


def test_a_message_for_several_fields_is_refused_by_their_names(client: openai.OpenAI, server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError, match="fills the fields first and second; send inputs to /v1/compl"):
        client.chat.completions.create(model="link", messages=HELLO)
    tokenized = httpx.post(f"{server.url}/v1/tokenize", json={"model": "link", "messages": HELLO})
    assert tokenized.status_code == 400
    assert "fills the fields first and second" in tokenized.json()["error"]["message"]


def test_a_client_that_leaves_frees_the_engine(server: RunningServer) -> None:
    def active_requests() -> float:
        counts = server.engine.statistics()
        return counts["running"] + counts["waiting"]

    before = server.engine.statistics().get("cancelled", 0)
    body = {
        "model": "poet",
        "prompt": ["Hi"] * 60,  # seconds of work, so that a slow client still leaves in the middle
        "max_tokens": 200,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
        next(answer.iter_text())
        assert active_requests() > 0
    wait_until(lambda: active_requests() == 0, seconds=5)
    assert server.engine.statistics()["cancelled"] == before + 60
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=body | {"stream": False}, timeout=0.2)
    wait_until(lambda: active_requests() == 0, seconds=5)
    assert server.engine.statistics()["cancelled"] == before + 120


def test_many_streams_of_different_tasks_do_not_mix(server: RunningServer) -> None:
    """Every stream equals its alone answer, whatever runs beside it."""
    for number in range(4):
        server.bank.publish(learned_task(server.lm, f"voice-{number}", seed=10 + number))
    models = [*TASKS, *(f"voice-{number}" for number in range(4))]
    requests = [(models[i % len(models)], f"Question {i}", float(i // 8)) for i in range(16)]

    async def stream(client: openai.AsyncOpenAI, model: str, prompt: str, temperature: float) -> str:
        chunks = await client.completions.create(
            model=model, prompt=prompt, temperature=temperature, seed=1, max_tokens=24, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in chunks])

    async def ask() -> tuple[list[str], list[str]]:
        async with server.async_client() as client:
            together = await asyncio.gather(*(stream(client, *request) for request in requests))
            alone = [await stream(client, *request) for request in requests]
            return together, alone

    together, alone = asyncio.run(ask())
    assert together == alone
    assert len(set(alone)) > len(models)
