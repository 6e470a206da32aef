"""Tasks of an encoder over HTTP: heads label texts and words, and nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
import torch

from foreword.bank.bank import Bank
from foreword.core import Head, Task
from foreword.engine.engine import Engine
from foreword.models import LanguageModel
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from server.running_server import learned_prefix
from tiny_models import tiny_model

LABELS = ("O", "B-A", "I-A")


def head(lm: LanguageModel, *, per_token: bool) -> Head:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(len(LABELS), lm.identity.hidden_size, generator=generator)
    return Head(LABELS, weight, torch.tensor([0.1, 0.0, -0.1]), per_token)


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    lm, bank = tiny_model("bert"), Bank(tmp_path_factory.mktemp("bank"))
    prefix = learned_prefix(lm.identity)
    bank.publish(Task("texts", "p-tuning-v2", prefix, template="{text}", head=head(lm, per_token=False)))
    several = replace(head(lm, per_token=False), problem_type="multi_label_classification")
    bank.publish(Task("several", "p-tuning-v2", prefix, template="{text}", head=several))
    number = Head(("stars",), several.weight[:1], several.bias[:1], problem_type="regression")
    bank.publish(Task("grade", "p-tuning-v2", prefix, template="{text}", head=number))
    bank.publish(Task("words", "p-tuning-v2", prefix, template="{tokens}", head=head(lm, per_token=True)))
    with (
        Engine(lm, cache_bytes=1 << 20) as engine,
        serve_in_background(create_app(engine, bank)) as url,
        httpx.Client(base_url=url) as client,
    ):
        yield client


def reference(text: list[str], places: list[int]) -> torch.Tensor:
    return logits(text, places).softmax(-1)


def logits(text: list[str], places: list[int]) -> torch.Tensor:
    """By Transformers alone: hidden states behind the prefix as ``past_key_values``, and a product."""
    from transformers import DynamicCache

    from foreword import attention

    lm = tiny_model("bert")
    prefix, cache = learned_prefix(lm.identity), DynamicCache()
    for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        cache.update(key[None], value[None], layer)
    lm.model.set_attn_implementation("eager")
    try:
        ids = torch.tensor([lm.tokenizer(" ".join(text)).input_ids])
        with torch.no_grad():
            states = lm.model.bert(input_ids=ids, past_key_values=cache).last_hidden_state[0, places]
    finally:
        lm.model.set_attn_implementation(attention.ATTN_IMPLEMENTATION)
    made = head(lm, per_token=True)
    return states @ made.weight.T + made.bias


def test_texts_are_labelled(http):
    (answer,) = http.post("/v1/classify", json={"model": "texts", "input": ["a fine day"]}).json()["data"]
    expected = dict(zip(LABELS, reference(["a fine day"], [0])[0].tolist(), strict=True))
    assert answer["probs"] == pytest.approx(expected, abs=1e-4)
    assert answer["label"] == max(expected, key=expected.__getitem__)


def test_texts_may_have_several_labels(http):
    (answer,) = http.post("/v1/classify", json={"model": "several", "input": ["a fine day"]}).json()["data"]
    scores = logits(["a fine day"], [0])[0]
    expected = dict(zip(LABELS, scores.sigmoid().tolist(), strict=True))
    assert answer["probs"] == pytest.approx(expected, abs=1e-4)
    assert answer["labels"] == [label for label, value in expected.items() if value >= 0.5]
    assert answer["label"] == max(expected, key=expected.__getitem__)
    assert answer.keys() == {"index", "labels", "label", "probs"}


def test_texts_may_be_given_a_number(http):
    (answer,) = http.post("/v1/classify", json={"model": "grade", "input": ["a fine day"]}).json()["data"]
    assert answer == {"index": 0, "value": pytest.approx(float(logits(["a fine day"], [0])[0, 0]), abs=1e-4)}


def test_words_are_tagged_however_they_are_sent(http):
    words = ["see", "Paris", "now"]
    inputs = ["see Paris now", words, {"tokens": words}]
    data = http.post("/v1/tag", json={"model": "words", "input": inputs}).json()["data"]
    expected = reference(words, [0, 3, 9])  # the space before a word is its first token here
    for index, answer in enumerate(data):
        assert (answer["index"], answer["words"]) == (index, words)
        assert answer["tags"] == [LABELS[place] for place in expected.argmax(-1).tolist()]
        assert answer["probs"] == pytest.approx(expected.max(-1).values.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/v1/tag", {"model": "texts", "input": "a"}, "labels whole texts, not their words; ask /v1/classify"),
        ("/v1/classify", {"model": "words", "input": "a"}, "labels every word; tag with it"),
        (
            "/v1/completions",
            {"model": "texts", "prompt": "a"},
            "labels texts and writes none; ask /v1/classify",
        ),
        (
            "/v1/completions",
            {"model": "words", "prompt": "a"},
            "tags words and writes no text; ask /v1/tag",
        ),
        ("/v1/completions", {"model": "tiny-bert", "prompt": "a"}, "is an encoder, which writes no text"),
        ("/v1/tag", {"model": "tiny-bert", "input": "a"}, "the base model tags nothing"),
        ("/v1/tag", {"model": "words", "input": [[]]}, "a text, an object of field values, or a list of texts"),
        ("/v1/tag", {"model": "words", "input": [" "]}, "input[0]: field 'tokens' must be a list of words"),
    ],
)
def test_what_an_encoder_cannot_do_is_said(http, path, body, sentence):
    answer = http.post(path, json=body)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]
