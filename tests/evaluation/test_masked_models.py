"""Words at the mask of a masked model, behind a prefix and with soft tokens inside, by plain Transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from engine.reference import learned_prefix
from foreword import attention
from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.evaluation.predict import classify
from foreword.models import LanguageModel
from text.small_tokenizers import TOKENIZERS
from tiny_models import tiny_model

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
