"""Words at the mask of a masked model, behind a prefix and with soft tokens inside, by plain Transformers."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest
import torch
from transformers import DynamicCache

from engine.reference import learned_prefix
from foreword import attention
from foreword.bank.bank import Bank
from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.errors import TemplateError
from foreword.evaluation.predict import classify
from foreword.models import LanguageModel
from foreword.prompts.lower import empty_prefix
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.text.template import Template
from foreword.training.train import train
from text.small_tokenizers import TOKENIZERS
from tiny_models import tiny_model
from training.small_data import recipe, write_jsonl

# One token, several, and two words of one label.
WORDS = {"good": ("great", "positive"), "bad": ("awful",), "far": ("世界",)}
TEMPLATE = "a {text} film, it is {mask}. label"


def masked_model(family: str) -> LanguageModel:
    return replace(tiny_model(family), tokenizer=TOKENIZERS["wordpiece"])


def states(lm: LanguageModel, embedded: torch.Tensor, prefix) -> torch.Tensor:
    """Logits of a whole row ``[T, hidden]`` by Transformers alone, behind a prefix as ``past_key_values``."""
    cache = None
    if prefix is not None:
        cache = DynamicCache()
        for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            cache.update(key[None], value[None], layer)
    start = (prefix.length if prefix is not None else 0) + lm.first_position
    positions = torch.arange(start, start + len(embedded))[None]
    lm.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return lm.model(inputs_embeds=embedded[None], position_ids=positions, past_key_values=cache).logits[0]
    finally:
        lm.model.set_attn_implementation(attention.ATTN_IMPLEMENTATION)


def brute_force(lm: LanguageModel, text: str, prefix, soft: torch.Tensor | None) -> torch.Tensor:
    """Each word alone: a row with as many masks as it has tokens."""
    tokenizer, table = lm.tokenizer, lm.model.get_input_embeddings()
    before = tokenizer(f"a {text} film, it is", add_special_tokens=False).input_ids
    after = tokenizer(". label", add_special_tokens=False).input_ids
    scores = []
    for words in WORDS.values():
        found = []
        for word in words:
            tokens = tokenizer(word, add_special_tokens=False).input_ids
            ids = [2, *before, *[tokenizer.mask_token_id] * len(tokens), *after, 3]
            with torch.no_grad():
                row = table(torch.tensor(ids))
            row = row if soft is None else torch.cat([soft, row])
            at = (0 if soft is None else len(soft)) + 1 + len(before)
            logprobs = states(lm, row, prefix)[at : at + len(tokens)].log_softmax(-1)
            found.append(logprobs.gather(1, torch.tensor(tokens)[:, None]).sum())
        scores.append(torch.stack(found).logsumexp(0))
    return torch.stack(scores).softmax(-1)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("fronts", ["nothing", "prefix", "soft", "both"])
def test_words_at_a_mask_equal_brute_force(family, fronts):
    lm = masked_model(family)
    assert {len(lm.tokenizer(w, add_special_tokens=False).input_ids) for ws in WORDS.values() for w in ws} != {1}
    prefix = learned_prefix(family, 5) if fronts in ("prefix", "both") else None
    soft = torch.randn(3, lm.identity.hidden_size) if fronts in ("soft", "both") else None
    empty = replace(
        learned_prefix(family, 5),
        keys=tuple(k[:, :0] for k in learned_prefix(family, 5).keys),
        values=tuple(v[:, :0] for v in learned_prefix(family, 5).values),
        offset=0,
    )
    template = TEMPLATE if soft is None else "{soft:3}" + TEMPLATE
    task = Task("t", "p-tuning-v2", prefix or empty, template=template, verbalizer=WORDS, soft=soft)
    texts = ["great", "bad and awful", ""]
    with Engine(lm, cache_bytes=1 << 20) as engine:
        found = classify(engine, task, [{"text": text} for text in texts])
    for probs, text in zip(found, texts, strict=True):
        expected = brute_force(lm, text, prefix, soft)
        torch.testing.assert_close(torch.tensor(list(probs.values())), expected, atol=1e-4, rtol=0)


# Soft tokens on both sides of the mask, as P-tuning v1 has them; what stands where, with 0 for the next soft token.
AROUND = {
    "{soft:3}{text}{soft:3}{mask}{soft:3}": lambda text, masks: [0, 0, 0, 2, *text, 0, 0, 0, *masks, 0, 0, 0, 3],
    "{soft:4}{mask}{soft:4}{text}": lambda text, masks: [2, *[0] * 4, *masks, *[0] * 4, *text, 3],
    "{text}{mask}{soft:2}{text}{soft:1}": lambda text, masks: [2, *text, *masks, 0, 0, *text, 0, 3],
}


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("template", AROUND)
def test_soft_tokens_around_a_mask_equal_brute_force(family, template):
    lm = masked_model(family)
    soft = torch.randn(9, lm.identity.hidden_size, generator=torch.Generator().manual_seed(1))
    soft = soft[: Template.parse(template).num_soft_tokens]
    task = Task("t", "p-tuning", empty_prefix(lm), template=template, verbalizer=WORDS, soft=soft)
    with Engine(lm, cache_bytes=1 << 20) as engine:
        (found,) = classify(engine, task, [{"text": "bad and awful"}])
    scores = []
    for words in WORDS.values():
        one = []
        for word in words:
            tokens = lm.tokenizer(word, add_special_tokens=False).input_ids
            text = lm.tokenizer("bad and awful", add_special_tokens=False).input_ids
            ids = torch.tensor(AROUND[template](text, [lm.tokenizer.mask_token_id] * len(tokens)))
            with torch.no_grad():
                row = lm.model.get_input_embeddings()(ids).clone()
            row[ids == 0] = soft
            logprobs = states(lm, row, None)[ids == lm.tokenizer.mask_token_id].log_softmax(-1)
            one.append(logprobs.gather(1, torch.tensor(tokens)[:, None]).sum())
        scores.append(torch.stack(one).logsumexp(0))
    torch.testing.assert_close(torch.tensor(list(found.values())), torch.stack(scores).softmax(-1), atol=1e-4, rtol=0)


def test_soft_tokens_around_a_mask_are_learned_published_and_served(tmp_path):
    lm = masked_model("bert")
    words = {"y": "great", "n": "awful"}
    template = "{soft:3}{text}{soft:3}{mask}{soft:3}"
    rows = [{"text": word, "label": label} for word, label in (("good", "y"), ("bad", "n"))] * 12
    settings = recipe(
        tmp_path,
        method="p-tuning",
        template=template,
        verbalizer=words,
        length=None,
        init="auto",
        lr=0.02,
        max_steps=30,
        data=write_jsonl(tmp_path / "words.jsonl", rows),
        eval=write_jsonl(tmp_path / "held.jsonl", rows),
    )
    result = train(lm, settings, name="around")
    assert result.metrics["accuracy"] == 1.0
    bank = Bank(tmp_path / "bank")
    bank.publish(result.task)
    with Engine(lm, cache_bytes=1 << 20) as engine:
        expected = classify(engine, result.task, [{"text": "good"}, {"text": "bad"}])
        with serve_in_background(create_app(engine, bank)) as url:
            body = {"model": "around", "input": ["good", "bad"]}
            data = httpx.post(f"{url}/v1/classify", json=body).json()["data"]
    assert [each["label"] for each in data] == ["y", "n"]
    assert [each["probs"] for each in data] == [pytest.approx(probs) for probs in expected]


def test_causal_models_see_nothing_behind_the_answer(tmp_path):
    with pytest.raises(TemplateError, match=r"\{soft:2\} behind the answer is never seen by a model that writes"):
        train(tiny_model("llama"), recipe(tmp_path, method="p-tuning", template="{text}{mask}{soft:2}", length=None))
