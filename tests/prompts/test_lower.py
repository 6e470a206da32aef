"""Lowering an encoder changes nothing: the prefix gives the logits that the encoder's own front gives."""

from __future__ import annotations

import pytest
import torch

from foreword.core import Batch, Front, KVPrefix
from foreword.errors import PromptTooLong, UsageError
from foreword.models import LanguageModel, load_model
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import from_text, random_values, sampled_vocabulary
from foreword.prompts.lower import empty_prefix, lower, lower_tokens
from foreword.prompts.registry import get_method
from foreword.prompts.static import static_task
from tiny_models import CAUSAL, ENCODERS, save_tiny, tiny_model

ROWS = [tuple(range(60, 69)), tuple(range(90, 94)), (100,), tuple(range(110, 123))]
IN_FRONT = ("prompt-tuning", "p-tuning", "prefix-tuning", "p-tuning-v2", "lora-hybrid")
LEARNED = (*IN_FRONT, "lora")


def encoder(lm: LanguageModel, name: str, length: int = 9, start: str = "random", moved: float = 0.0) -> PromptEncoder:
    """Of one method at its start, or ``moved`` from there as learning would."""
    makers = {
        "random": random_values,
        "vocab": sampled_vocabulary(lm),
        "text": from_text(lm, "Is this a good film?"),
    }
    generator = torch.Generator().manual_seed(1)
    made = get_method(name)
    learned = made.encoder(lm, makers[start](length, generator) if made.length else random_values(0, generator))
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter.add_(moved * torch.randn(parameter.shape, generator=generator))
    return learned


def logits(lm: LanguageModel, front: Front) -> list[torch.Tensor]:
    """Of every token of `ROWS` behind a front."""
    batch = Batch.from_rows(front, ROWS)
    places = [torch.arange(batch.starts[i], batch.starts[i + 1]) for i in range(-len(ROWS) - 1, -1)]
    return list(lm.logits(batch, torch.cat(places)).split([len(row) for row in ROWS]))


def test_nothing_lowers_to_nothing():
    lm = tiny_model("llama")
    assert lower(lm, encoder(lm, "manual")).length == 0


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("moved", [0.0, 0.1])
def test_lowering_changes_no_logit(family, name, moved):
    """Whatever network the values came through, and with the adapter that they were learned beside."""
    lm = tiny_model(family)
    learned = encoder(lm, name, start="text", moved=moved)
    prefix = lower(lm, learned)
    served = Front(prefix, adapter=learned.front().adapter)
    for found, expected in zip(logits(lm, served), logits(lm, learned.front()), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert prefix.length == prefix.offset == (9 if name in IN_FRONT else 0)
    assert prefix.token_ids is None
    assert prefix.bos == "request"


@pytest.mark.parametrize("name", IN_FRONT)
@pytest.mark.parametrize("start", ["random", "vocab"])
def test_wherever_it_started(name, start):
    lm = tiny_model("gemma3")
    learned = encoder(lm, name, start=start)
    served = Front(lower(lm, learned), adapter=learned.front().adapter)
    for found, expected in zip(logits(lm, served), logits(lm, learned.front()), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_soft_tokens_are_lowered_with_the_adapter_on():
    lm = tiny_model("llama")
    front = Front(
        soft=encoder(lm, "prompt-tuning", 4).front().soft, adapter=encoder(lm, "lora", moved=0.1).front().adapter
    )
    served, without = Front(lower(lm, front), adapter=front.adapter), Front(lower(lm, Front(soft=front.soft)))
    for found, expected in zip(logits(lm, served), logits(lm, front), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (served.prefix.keys[1] - without.prefix.keys[1]).abs().max() > 0.01


def test_where_the_beginning_of_text_token_is():
    lm = tiny_model("llama")
    soft = encoder(lm, "prompt-tuning", 4).front().soft
    static = lower_tokens(lm, range(50, 55))
    assert lower(lm, Front(soft=soft)).bos == "request"
    assert lower(lm, Front(soft=soft, bos="prefix")).bos == "prefix"
    assert lower(lm, Front(static, soft)).bos == "prefix"
    assert lower(lm, Front(static)).bos == "prefix"


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("name", ["p-tuning-v2", "prefix-tuning", "lora-hybrid", "lora"])
def test_encoders_have_prefixes_too(family, name):
    lm = tiny_model(family)
    learned = encoder(lm, name, start="text", moved=0.1)
    served = Front(lower(lm, learned), adapter=learned.front().adapter)
    for found, expected in zip(logits(lm, served), logits(lm, learned.front()), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_soft_tokens_in_front_of_an_encoder_are_not_lowered():
    lm = tiny_model("bert")
    with pytest.raises(UsageError, match="reads in both directions, so soft tokens in front change with every request"):
        lower(lm, Front(soft=torch.zeros(3, lm.identity.hidden_size)))


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_learned_does_something(name):
    lm = tiny_model("llama")
    without, behind = logits(lm, Front()), logits(lm, encoder(lm, name, moved=0.1).front())
    assert all((a - b).abs().max() > 0.01 for a, b in zip(without, behind, strict=True))


def test_a_prefix_in_front_of_soft_tokens_is_part_of_the_lowered_one():
    lm = tiny_model("llama")
    front = Front(lower(lm, encoder(lm, "p-tuning-v2", 3)), encoder(lm, "prompt-tuning", 4).front().soft)
    prefix = lower(lm, front)
    assert prefix.length == 7
    for found, expected in zip(logits(lm, Front(prefix)), logits(lm, front), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", IN_FRONT)
def test_a_lowered_prefix_stays_as_it_is_while_learning_goes_on(name):
    lm = tiny_model("llama")
    learned = encoder(lm, name)
    prefix = lower(lm, learned)
    digest = prefix.digest
    with torch.no_grad():
        for tensor in (*learned.parameters(), *learned.buffers()):
            tensor.add_(1)
    again = KVPrefix(prefix.model, prefix.keys, prefix.values, prefix.offset)
    assert again.digest == digest
    assert not any(tensor.requires_grad for tensor in (*prefix.keys, *prefix.values))


def test_lowered_in_the_models_dtype_and_learned_in_float32(tmp_path):
    lm = load_model(str(save_tiny("llama", tmp_path)), dtype="bfloat16")
    for name in LEARNED:
        learned = encoder(lm, name, start="text")
        front = learned.front()
        made = [front.soft, front.prefix and front.prefix.keys[-1], learned.soft_tokens()]
        made += [pair.down for pair in front.adapter.layers.values()] if front.adapter is not None else []
        assert {parameter.dtype for parameter in learned.parameters()} == {torch.float32}
        assert {tensor.dtype for tensor in made if tensor is not None} == {torch.bfloat16}
        assert lower(lm, learned).keys[-1].dtype == torch.bfloat16


@pytest.mark.parametrize("family", CAUSAL)
def test_a_static_prefix_behind_another(family):
    lm = tiny_model(family)
    whole = lower_tokens(lm, range(50, 62))
    parts = lower_tokens(lm, range(55, 62), past=lower_tokens(lm, range(50, 55)))
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
    assert empty_prefix(lm).length == 0


def test_a_static_task_holds_the_models_own_keys():
    lm = tiny_model("llama")
    task = static_task(lm, "polite", "prompt", "Be polite.\n")
    assert (task.method, task.kind, task.text) == ("static", "prompt", "Be polite.\n")
    assert task.prefix.token_ids == tuple(lm.tokenizer("Be polite.\n").input_ids)
    assert task.prefix.bos == "prefix"
    with pytest.raises(UsageError, match="the text of a static task is empty"):
        static_task(lm, "nothing", "prompt", "")
