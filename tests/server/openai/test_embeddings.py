"""Embeddings through OpenAI's own client, equal to plain Transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from tokenizers import processors
from transformers import DynamicCache

from engine.reference import stock_model
from foreword.bank.bank import Bank
from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from server.running_server import PROMPT_TEXT, RunningServer, label_task, learned_prefix
from tiny_models import byte_tokenizer, tiny_model


def reference(server: RunningServer, ids: list[int], task: str | None = None, pooling: str = "last") -> torch.Tensor:
    past, start = DynamicCache(config=stock_model("llama").config), 0
    if task is not None:
        prefix = server.bank.load(task).prefix
        start = prefix.length
        for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            past.update(key[None], value[None], layer)
    positions = torch.arange(start, start + len(ids))[None]
    body = stock_model("llama").base_model
    states = body(input_ids=torch.tensor([ids]), position_ids=positions, past_key_values=past).last_hidden_state[0]
    vector = states[-1] if pooling == "last" else states.mean(0)
    return vector / vector.norm()


def assert_equal(found: Any, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(np.asarray(found), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_texts_and_token_ids(client: openai.OpenAI, server: RunningServer, encoding: Any, pooling: str) -> None:
    ids = {text: server.lm.tokenizer(text).input_ids for text in ("A fine day", "Rain")}
    options: dict[str, Any] = {"model": "tiny-llama", "extra_body": {"pooling": pooling}}
    if encoding is not None:
        options["encoding_format"] = encoding
    for sent in (list(ids), list(ids.values())):
        answer = client.embeddings.create(input=sent, **options)
        assert [each.index for each in answer.data] == [0, 1]
        for each, expected in zip(answer.data, ids.values(), strict=True):
            vector = each.embedding
            if encoding == "base64":  # as it was asked for; without a format the client decodes
                import base64

                vector = np.frombuffer(base64.b64decode(vector), "<f4").tolist()  # type: ignore[arg-type]
            assert_equal(vector, reference(server, expected, pooling=pooling))
    single = client.embeddings.create(input="Rain", model="tiny-llama")
    assert_equal(single.data[0].embedding, reference(server, ids["Rain"]))
    alone = client.embeddings.create(input=ids["Rain"], model="tiny-llama")
    assert alone.data[0].embedding == single.data[0].embedding
    assert (single.object, single.model, single.data[0].object) == ("list", "tiny-llama", "embedding")
    assert (single.usage.prompt_tokens, single.usage.total_tokens) == (4, 4)


def test_a_learned_prefix_counts(client: openai.OpenAI, server: RunningServer) -> None:
    ids = server.lm.tokenizer("Rain").input_ids
    answer = client.embeddings.create(input="Rain", model="poet")
    assert_equal(answer.data[0].embedding, reference(server, ids, "poet"))
    assert answer.usage.prompt_tokens == 5 + len(ids)
    (base,) = client.embeddings.create(input="Rain", model="tiny-llama").data
    assert np.abs(np.subtract(base.embedding, answer.data[0].embedding)).max() > 0.01


def test_a_static_prompt_embeds_as_the_joined_text(client: openai.OpenAI, server: RunningServer) -> None:
    joined = server.lm.tokenizer(PROMPT_TEXT + "there was").input_ids
    answer = client.embeddings.create(input="there was", model="story")
    assert_equal(answer.data[0].embedding, reference(server, joined))


def test_embeddings_are_counted_in_metrics(client: openai.OpenAI, server: RunningServer) -> None:
    client.embeddings.create(input="Rain", model="poet")
    text = httpx.get(f"{server.url}/metrics").text
    assert 'foreword_responses_total{route="/v1/embeddings",status="200"}' in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"input": []}, "input must be a text, a list of texts"),
        ({"input": ""}, "nothing to continue"),
        ({"input": [[]]}, "input must be a text, a list of texts"),
        ({"input": [9999]}, "token id 9999 is outside"),
        ({"input": ["a", "b" * 300]}, "more than the context of 256"),
        ({"input": "a", "dimensions": 8}, "dimensions must be 48 or left out"),
        ({"input": "a", "pooling": "max"}, "pooling must be 'last', 'mean' or 'cls'"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format must be 'float' or 'base64'"),
        ({"input": "a", "input_type": "query"}, "input_type is not supported"),
    ],
)
def test_what_is_refused(server: RunningServer, options: dict[str, Any], sentence: str) -> None:
    response = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny-llama", **options})
    assert response.status_code == 400
    assert sentence in response.json()["error"]["message"]


def test_the_models_own_dimensions_and_a_user_change_nothing(client: openai.OpenAI) -> None:
    plain = client.embeddings.create(input="Rain", model="tiny-llama").data[0].embedding
    options: dict[str, Any] = {"dimensions": 48, "user": "me"}
    assert client.embeddings.create(input="Rain", model="tiny-llama", **options).data[0].embedding == plain


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A BERT whose tokenizer closes texts, with a learned task and an ensemble."""
    import dataclasses

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"cls_token": "<cls>", "sep_token": "<sep>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", special_tokens=[("<cls>", tokenizer.cls_token_id), ("<sep>", tokenizer.sep_token_id)]
    )
    lm = dataclasses.replace(tiny_model("bert"), tokenizer=tokenizer)
    bank = Bank(tmp_path_factory.mktemp("bank"))
    bank.publish(Task("learned", "p-tuning-v2", learned_prefix(lm.identity)))
    both = dataclasses.replace(label_task(lm, "both"), members=(learned_prefix(lm.identity, seed=8),))
    bank.publish(both)
    with (
        Engine(lm, cache_bytes=1 << 20) as engine,
        serve_in_background(create_app(engine, bank)) as url,
        httpx.Client(base_url=url) as http,
    ):
        yield http


def test_an_encoder_sees_the_special_tokens_of_its_tokenizer(encoder: httpx.Client) -> None:
    from foreword import attention

    (found,) = encoder.post("/v1/embeddings", json={"model": "tiny-bert", "input": "day"}).json()["data"]
    lm = tiny_model("bert")
    ids = [258, *lm.tokenizer("day").input_ids, 259]
    lm.model.set_attn_implementation("eager")
    try:
        states = lm.model.bert(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
    finally:
        lm.model.set_attn_implementation(attention.ATTN_IMPLEMENTATION)
    assert_equal(found["embedding"], states.detach() / states.detach().norm())
    learned = encoder.post("/v1/embeddings", json={"model": "learned", "input": "day"}).json()
    assert learned["usage"]["prompt_tokens"] == 5 + len(ids)


def test_an_ensemble_has_no_one_prefix(encoder: httpx.Client) -> None:
    response = encoder.post("/v1/embeddings", json={"model": "both", "input": "day"})
    assert response.status_code == 400
    assert "embed behind one of its members" in response.json()["error"]["message"]
