"""Lowering an encoder changes nothing: the prefix gives the logits that the encoder's own front gives."""

from __future__ import annotations

import pytest
import torch

from foreword.core import Batch, Front, KVPrefix
from foreword.errors import PromptTooLong, UsageError
from foreword.models import LanguageModel, load_model
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import random_values, sampled_vocabulary, text
from foreword.prompts.lower import empty, lower, lower_tokens
from foreword.prompts.registry import method
from foreword.prompts.static import static_task
from models import CAUSAL, ENCODERS, save_tiny, tiny_model

ROWS = [tuple(range(60, 69)), tuple(range(90, 94)), (100,), tuple(range(110, 123))]
LEARNED = ("p-tuning-v2", "prompt-tuning")


def encoder(lm: LanguageModel, name: str, length: int = 9, start: str = "random") -> PromptEncoder:
    makers = {
        "random": random_values,
        "vocab": sampled_vocabulary(lm),
        "text": text(lm, "Is this a good film?"),
    }
    return method(name).encoder(lm, makers[start](length, torch.Generator().manual_seed(1)))


def logits(lm: LanguageModel, front: Front) -> list[torch.Tensor]:
    """Of every token of `ROWS` behind a front."""
    batch = Batch.behind(front, ROWS)
    places = [torch.arange(batch.starts[i], batch.starts[i + 1]) for i in range(-len(ROWS) - 1, -1)]
    return list(lm.logits(batch, torch.cat(places)).split([len(row) for row in ROWS]))


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("name", [*LEARNED, "manual"])
@pytest.mark.parametrize("start", ["random", "vocab", "text"])
def test_lowering_changes_no_logit(family, name, start):
    lm = tiny_model(family)
    learned = encoder(lm, name, start=start)
    prefix = lower(lm, learned)
    for found, expected in zip(logits(lm, Front(prefix)), logits(lm, learned.front()), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert prefix.length == prefix.offset == (0 if name == "manual" else 9)
    assert prefix.token_ids is None
    assert prefix.bos == "request"


@pytest.mark.parametrize("family", ENCODERS)
def test_p_tuning_v2_lowers_for_encoders_too(family):
    lm = tiny_model(family)
    learned = encoder(lm, "p-tuning-v2")
    for found, expected in zip(logits(lm, Front(lower(lm, learned))), logits(lm, learned.front()), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_prefix_does_something(name):
    lm = tiny_model("llama")
    without, behind = logits(lm, Front()), logits(lm, encoder(lm, name).front())
    assert all((a - b).abs().max() > 0.01 for a, b in zip(without, behind, strict=True))


def test_a_prefix_in_front_of_soft_tokens_is_part_of_the_lowered_one():
    lm = tiny_model("llama")
    front = Front(lower(lm, encoder(lm, "p-tuning-v2", 3)), encoder(lm, "prompt-tuning", 4).front().soft)
    prefix = lower(lm, front)
    assert prefix.length == 7
    for found, expected in zip(logits(lm, Front(prefix)), logits(lm, front), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LEARNED)
def test_a_lowered_prefix_stays_as_it_is_while_learning_goes_on(name):
    lm = tiny_model("llama")
    learned = encoder(lm, name)
    prefix = lower(lm, learned)
    digest = prefix.digest
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter.add_(1.0)
    again = KVPrefix(prefix.model, prefix.keys, prefix.values, prefix.offset)
    assert again.digest == digest
    assert not any(tensor.requires_grad for tensor in (*prefix.keys, *prefix.values))


def test_lowered_in_the_models_dtype_and_learned_in_float32(tmp_path):
    lm = load_model(str(save_tiny("llama", tmp_path)), dtype="bfloat16")
    for name in LEARNED:
        learned = encoder(lm, name)
        assert {parameter.dtype for parameter in learned.parameters()} == {torch.float32}
        assert lower(lm, learned).keys[-1].dtype == torch.bfloat16


@pytest.mark.parametrize("family", CAUSAL)
def test_a_static_prefix_behind_another(family):
    lm = tiny_model(family)
    whole = lower_tokens(lm, range(50, 62))
    parts = lower_tokens(lm, range(55, 62), behind=lower_tokens(lm, range(50, 55)))
    assert whole.token_ids == tuple(range(50, 62))
    assert parts.token_ids is None
    for a, b in zip((*whole.keys, *whole.values), (*parts.keys, *parts.values), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_what_cannot_be_a_static_prefix():
    lm = tiny_model("gpt2")
    with pytest.raises(UsageError, match="the text has no tokens"):
        lower_tokens(lm, [])
    with pytest.raises(PromptTooLong, match="the text has 256 tokens, the context of tiny-gpt2 is 256; shorten it"):
        lower_tokens(lm, [70] * 256)
    with pytest.raises(UsageError, match="BertForMaskedLM reads in both directions"):
        lower_tokens(tiny_model("bert"), [70])
    assert empty(lm).length == 0


def test_a_static_task_holds_the_models_own_keys():
    lm = tiny_model("llama")
    task = static_task(lm, "polite", "prompt", "Be polite.\n")
    assert (task.method, task.kind, task.text) == ("static", "prompt", "Be polite.\n")
    assert task.prefix.token_ids == tuple(lm.tokenizer("Be polite.\n").input_ids)
    assert task.prefix.bos == "prefix"
    with pytest.raises(UsageError, match="the text of a static task is empty"):
        static_task(lm, "nothing", "prompt", "")
