"""Gradients of the encoders: against finite differences in float64, plain Transformers, and PEFT."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from foreword import attention
from foreword.core import Front
from foreword.models import LanguageModel
from foreword.models.ways import wrap_model
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import from_text, random_values
from foreword.prompts.registry import get_method
from foreword.text.encoded_example import EncodedExample
from foreword.training.data.examples import Example
from foreword.training.modules.losses import AnswerLoss, mean_loss
from tiny_models import CAUSAL, SIZES, byte_tokenizer, double, tiny_model


def example(*token_ids: int, target: tuple[int, ...]) -> Example:
    return Example(EncodedExample(token_ids, (len(token_ids) - 1,)), target=target)


EXAMPLES = [
    example(*range(60, 69), target=(70, 71, 72)),
    example(*range(90, 93), target=(94,)),
    example(100, 101, 102, 103, target=(104, 105, 106, 107, 108, 109)),
]
# Every method that learns, and options of theirs that learn through another network.
LEARNED = [
    *((name, {}) for name in ("prompt-tuning", "p-tuning", "prefix-tuning", "p-tuning-v2", "lora", "lora-hybrid")),
    ("p-tuning", {"encoder": "mlp"}),
    ("p-tuning-v2", {"projection": True}),
    ("p-tuning-v2", {"freeze_first": True}),
]


def answer_loss(lm: LanguageModel, front: Front, examples: list[Example]) -> torch.Tensor:
    return mean_loss(AnswerLoss(), lm, front, examples)


def perturbed(encoder: PromptEncoder) -> PromptEncoder:
    """Away from the start, where the last layer of a network is zero and hides the gradients of those before it."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return encoder


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("name", "options"), LEARNED)
def test_gradients_equal_finite_differences_in_float64(family, name, options):
    lm = double(family)
    made = get_method(name, **options)
    start = from_text(lm, "abc")(2 if made.length else 0, torch.Generator())
    encoder = perturbed(made.encoder(lm, start if made.length else random_values(0, torch.Generator())))
    parameters = list(encoder.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float64}
    # gradcheck moves the parameters themselves, so the encoder sees every step.
    assert torch.autograd.gradcheck(
        lambda *_: answer_loss(lm, encoder.front(), EXAMPLES[1:2]), parameters, atol=1e-7, rtol=1e-4, fast_mode=True
    )


@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning-v2"])
def test_every_single_gradient_of_values_learned_directly(name):
    """What the other methods go through too, one number after the other."""
    lm = double("llama")
    encoder = get_method(name).encoder(lm, from_text(lm, "ab")(1, torch.Generator()))
    assert torch.autograd.gradcheck(
        lambda *_: answer_loss(lm, encoder.front(), EXAMPLES[1:2]), list(encoder.parameters()), atol=1e-7, rtol=1e-4
    )


@pytest.mark.parametrize("family", CAUSAL)
def test_prompt_tuning_has_the_gradients_of_plain_inputs_embeds(family):
    lm = tiny_model(family)
    encoder = get_method("prompt-tuning").encoder(lm, random_values(5, torch.Generator().manual_seed(2)))
    loss = answer_loss(lm, encoder.front(), EXAMPLES)
    (found,) = torch.autograd.grad(loss, list(encoder.parameters()))
    expected = logits_by_transformers(lm, encoder)
    (gradient,) = torch.autograd.grad(expected, list(encoder.parameters()))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-4)


def logits_by_transformers(lm: LanguageModel, encoder: PromptEncoder) -> torch.Tensor:
    """The same loss one example at a time, by Transformers alone: the mean over all answers' tokens."""
    table = lm.model.get_input_embeddings()
    lm.model.set_attn_implementation("eager")
    try:
        total = torch.zeros(())
        for example in EXAMPLES:
            ids = torch.tensor(example.prompt_ids + example.target[:-1])
            embeds = torch.cat([encoder.front().soft, table(ids)])[None]
            logits = lm.model(inputs_embeds=embeds, use_cache=False).logits[0, -len(example.target) :]
            total = total + F.cross_entropy(logits, torch.tensor(example.target), reduction="sum")
        return total / sum(len(example.target) for example in EXAMPLES)
    finally:
        lm.model.set_attn_implementation(attention.ATTN_IMPLEMENTATION)


# PEFT's prefix tuning takes the head's width from the hidden size, so this Llama has no `head_dim` of its own.
PEFT_CONFIG = LlamaConfig(**SIZES, num_key_value_heads=2)


def twins() -> tuple[LanguageModel, nn.Module]:
    """One random Llama as ours, and as plain Transformers for PEFT."""
    attention.register()
    torch.manual_seed(4)
    ours = AutoModelForCausalLM.from_config(
        copy.deepcopy(PEFT_CONFIG), attn_implementation=attention.ATTN_IMPLEMENTATION
    )
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
    theirs = AutoModelForCausalLM.from_config(copy.deepcopy(PEFT_CONFIG), attn_implementation="eager")
    theirs.load_state_dict(ours.state_dict())
    return wrap_model(ours.eval().requires_grad_(False), byte_tokenizer(), name="twin"), theirs.eval()


def padded_inputs() -> dict[str, torch.Tensor]:
    """`EXAMPLES` as PEFT's users write them: padded, with labels on the answers only."""
    rows = [torch.tensor(example.prompt_ids + example.target) for example in EXAMPLES]
    labels = [torch.tensor((-100,) * len(example.prompt_ids) + example.target) for example in EXAMPLES]
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(rows, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }


def test_prompt_tuning_equals_peft():
    lm, model = twins()
    encoder = get_method("prompt-tuning").encoder(lm, random_values(6, torch.Generator().manual_seed(5)))
    tuned = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6))
    weight = tuned.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(encoder.front().soft)
    theirs = tuned(**padded_inputs()).loss
    ours = answer_loss(lm, encoder.front(), EXAMPLES)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    (expected,) = torch.autograd.grad(theirs, [weight])
    (found,) = torch.autograd.grad(ours, list(encoder.parameters()))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_p_tuning_v2_equals_pefts_prefix_tuning():
    lm, model = twins()
    encoder = get_method("p-tuning-v2").encoder(lm, random_values(6, torch.Generator().manual_seed(5)))
    tuned = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6))
    weight = tuned.prompt_encoder["default"].embedding.weight
    (rows,) = encoder.parameters()  # [P, layers * 2 * kv_heads * head_dim], as PEFT lays them out
    with torch.no_grad():
        weight.copy_(rows)
    theirs = tuned(**padded_inputs()).loss
    ours = answer_loss(lm, encoder.front(), EXAMPLES)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    (expected,) = torch.autograd.grad(theirs, [weight])
    (found,) = torch.autograd.grad(ours, [rows])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_one_pass_over_the_soft_tokens_serves_all_rows():
    """The soft tokens are one sequence of the batch however many rows there are."""
    lm = tiny_model("llama")
    encoder = get_method("prompt-tuning").encoder(lm, random_values(5, torch.Generator()))
    seen = []
    original = lm.logits

    def counted(batch, *args, **options):
        seen.append(sum(batch.lengths))
        return original(batch, *args, **options)

    lm.logits = counted
    try:
        answer_loss(lm, Front(soft=encoder.front().soft), EXAMPLES)
    finally:
        del lm.logits
    assert seen == [5 + sum(example.num_tokens - 1 for example in EXAMPLES)]
