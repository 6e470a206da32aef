"""LoRA: the same as PEFT's, on all layers that a user would name, alone and beside a prefix."""

from __future__ import annotations

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, Conv1D

from foreword.core import Batch, Front
from foreword.errors import ModelMismatch, UsageError
from foreword.models import LanguageModel
from foreword.prompts.init import InitialValues, from_text, random_values
from foreword.prompts.lora import LoRA, target_layers
from foreword.prompts.registry import get_method
from tiny_models import CAUSAL, CONFIGS, ENCODERS, tiny_model

ROWS = [tuple(range(60, 69)), tuple(range(90, 94)), (100,)]
LAYERS = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "bert": {"query", "key", "value", "dense"},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained_front(lm: LanguageModel, **options) -> Front:
    """An adapter after some learning: `up` is no longer zero."""
    encoder = LoRA(**options).encoder(lm, random_values(0, seeded()))
    with torch.no_grad():
        for parameter in encoder.up:
            parameter.normal_(0, 0.1, generator=seeded(2))
    return encoder.front()


def logits(lm: LanguageModel, front: Front) -> torch.Tensor:
    batch = Batch.from_rows(front, ROWS)
    return lm.logits(batch, torch.arange(batch.starts[-len(ROWS) - 1], batch.starts[-1]))


def stock_model(family: str):
    """The same model by Transformers alone."""
    auto = AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM
    model = auto.from_config(CONFIGS[family](), attn_implementation="eager")
    model.load_state_dict(tiny_model(family).model.state_dict())
    return model.eval()


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS])
@pytest.mark.parametrize("options", [{}, {"rank": 3, "alpha": 4.0}])
def test_logits_are_those_of_peft(family, options):
    lm = tiny_model(family)
    front = trained_front(lm, **options)
    rank, alpha = options.get("rank", 8), options.get("alpha", 16.0)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(front.adapter.layers), fan_in_fan_out=family == "gpt2"
    )
    tuned = peft.get_peft_model(stock_model(family), config).eval()
    weights = {}
    for name, pair in front.adapter.layers.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = pair.down
        weights[f"base_model.model.{name}.lora_B.weight"] = pair.up
    peft.set_peft_model_state_dict(tuned, weights)
    with torch.no_grad():
        expected = torch.cat([tuned(torch.tensor([row])).logits[0] for row in ROWS])
    torch.testing.assert_close(logits(lm, front), expected, atol=1e-5, rtol=1e-5)
    assert (logits(lm, Front()) - expected).abs().max() > 0.01


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_are_those_of_peft(family):
    lm = tiny_model(family)
    encoder = LoRA(rank=3).encoder(lm, random_values(0, seeded()))
    config = peft.LoraConfig(
        r=3, lora_alpha=16, target_modules=list(target_layers(lm)), fan_in_fan_out=family == "gpt2"
    )
    tuned = peft.get_peft_model(stock_model(family), config).eval()
    names = [f"base_model.model.{name}.lora_{factor}" for factor in "AB" for name in target_layers(lm)]
    theirs = dict(tuned.named_parameters())
    with torch.no_grad():
        for parameter in encoder.up:
            parameter.normal_(0, 0.1, generator=seeded(2))
        for name, value in zip(names, encoder.parameters(), strict=True):
            theirs[f"{name}.default.weight"].copy_(value)
    lossy = torch.cat([tuned(torch.tensor([row])).logits[0] for row in ROWS]).square().mean()
    expected = torch.autograd.grad(lossy, [theirs[f"{name}.default.weight"] for name in names])
    found = torch.autograd.grad(logits(lm, encoder.front()).square().mean(), list(encoder.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", LAYERS)
def test_all_linear_layers_of_the_blocks_are_changed_and_no_others(family):
    lm = tiny_model(family)
    found = target_layers(lm)
    assert {name.rsplit(".", 1)[-1] for name in found} == LAYERS[family]
    # Three blocks; neither the output matrix, nor what comes between it and the last block.
    per_block = {"llama": 7, "gpt2": 4, "gpt_neox": 4, "bert": 6}
    assert len(found) == 3 * per_block[family]
    modules = dict(lm.model.named_modules())
    for name, (width, out) in found.items():
        shape = tuple(modules[name].weight.shape)
        assert shape == ((width, out) if isinstance(modules[name], Conv1D) else (out, width))


def test_targets_are_the_ends_of_names():
    lm = tiny_model("llama")
    chosen = target_layers(lm, ["q_proj", "mlp.up_proj"])
    assert {name.rsplit(".", 1)[-1] for name in chosen} == {"q_proj", "up_proj"}
    assert len(chosen) == 6
    with pytest.raises(UsageError, match="tiny-llama has no linear layer 'proj' to change; choose from down_proj"):
        target_layers(lm, ["q_proj", "proj"])
    with pytest.raises(UsageError, match="has no linear layer 'lm_head' to change"):
        target_layers(lm, ["lm_head"])


@pytest.mark.parametrize("name", ["lora", "lora-hybrid"])
def test_nothing_is_changed_at_first(name):
    lm = tiny_model("llama")
    made = get_method(name)
    start = from_text(lm, "Answer: ")(4, seeded()) if made.length else random_values(0, seeded())
    front = made.encoder(lm, start).front()
    with torch.no_grad():
        assert torch.equal(logits(lm, front), logits(lm, Front(front.prefix)))
    for pair in front.adapter.layers.values():
        bound = pair.down.shape[1] ** -0.5
        assert 0.9 * bound < float(pair.down.detach().abs().max()) <= bound


def test_how_many_numbers_are_learned():
    lm = tiny_model("llama")
    per_block = 8 * sum(width + out for name, (width, out) in target_layers(lm).items() if ".0." in name)
    count = sum(p.numel() for p in LoRA().encoder(lm, random_values(0, seeded())).parameters())
    assert count == 3 * per_block
    both = get_method("lora-hybrid").encoder(lm, random_values(4, seeded()))
    assert sum(p.numel() for p in both.parameters()) == count + 4 * 3 * 2 * 2 * 16


def test_lora_has_no_place_for_virtual_tokens():
    lm = tiny_model("llama")
    for start in (
        random_values(3, seeded()),
        InitialValues(0, seeded(), token_ids=()),
        InitialValues(0, seeded(), soft=torch.ones(0)),
    ):
        with pytest.raises(UsageError, match="lora has no virtual tokens that could start from text"):
            LoRA().encoder(lm, start)


@pytest.mark.parametrize("options", [{"rank": 4}, {"alpha": 4.0}, {"targets": ("q_proj",)}])
def test_another_tasks_adapter_is_continued_as_it_is(options):
    lm = tiny_model("llama")
    start = InitialValues(0, seeded(), adapter=trained_front(lm).adapter)
    with pytest.raises(UsageError, match="changes 21 layers with rank 8 and alpha 16, this run would change"):
        LoRA(**options).encoder(lm, start)


def test_the_adapter_of_another_model_is_refused():
    theirs = trained_front(tiny_model("gpt2")).adapter
    with pytest.raises(ModelMismatch, match=r"the task to start from changes the layer transformer\.h\.0"):
        LoRA().encoder(tiny_model("llama"), InitialValues(0, seeded(), adapter=theirs))
