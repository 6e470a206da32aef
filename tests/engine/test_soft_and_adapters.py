"""Soft tokens inside requests and adapters of their own, mixed in one batch, equal plain Transformers and real PEFT."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor

from engine.reference import TOLERANCE, learned_prefix, make_request, random_ids, stock_model, tokens_of
from engine.test_engine import manual_engine, run_until_idle
from foreword.adapters import linear_layers
from foreword.core import Adapter, Batch, Front, LowRank, SamplingParams, soft_id
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import ModelMismatch, RequestError, UnsupportedModel
from foreword.prompts.lower import lower
from tiny_models import tiny_model

FAMILIES = ("llama", "qwen3", "gemma3", "gpt2")
PARAMS = SamplingParams(max_tokens=6, ignore_eos=True)


def soft_tokens(family: str, count: int, seed: int = 0) -> Tensor:
    width = tiny_model(family).identity.hidden_size
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def adapter(family: str, seed: int = 0, rank: int = 3) -> Adapter:
    """Changes of every linear layer, large enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: LowRank(0.3 * torch.randn(rank, i, generator=generator), 0.3 * torch.randn(o, rank, generator=generator))
        for name, (i, o) in linear_layers(tiny_model(family).model).items()
    }
    return Adapter(layers, scale=0.5)


def with_peft(family: str, changes: Adapter | None):
    """The stock model with the same change put in by PEFT itself."""
    if changes is None:
        return stock_model(family)
    model = copy.deepcopy(stock_model(family))
    config = LoraConfig(r=changes.rank, lora_alpha=changes.scale * changes.rank, target_modules=list(changes.layers))
    inject_adapter_in_model(config, model)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            module.lora_A["default"].weight.data.copy_(changes.layers[name].down)
            module.lora_B["default"].weight.data.copy_(changes.layers[name].up)
    return model.eval()


def assert_greedy(family: str, request: Request, tokens: list[int]) -> None:
    """Every token is the most probable one by a plain forward over embeddings, with PEFT's LoRA in the model."""
    model = with_peft(family, request.adapter)
    ids = torch.tensor([*request.token_ids, *tokens[:-1]])
    table = model.get_input_embeddings()
    with torch.no_grad():
        embedded = table(ids.clamp_min(0))
        if request.soft is not None:
            embedded[ids < 0] = request.soft[-1 - ids[ids < 0]]
        past, start = None, 0
        if request.prefix is not None:
            from engine.reference import _past

            past, start = _past(family, request.prefix), request.prefix.length
        positions = torch.arange(start, start + len(ids))[None]
        out = model(inputs_embeds=embedded[None], position_ids=positions, past_key_values=past)
    found = out.logits[0, -len(tokens) :]
    chosen = found.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert float((found.max(-1).values - chosen).max()) <= TOLERANCE, tokens


def requests(family: str) -> list[Request]:
    """Soft tokens, adapters, prefixes, and all of them at once, in every order."""
    one, other = adapter(family, 1), adapter(family, 2, rank=2)
    few, many = soft_tokens(family, 2), soft_tokens(family, 5, 1)
    inside = (*random_ids(4, 1), soft_id(0), soft_id(1), *random_ids(3, 2))
    ends = (*random_ids(2, 3), *map(soft_id, range(5)))
    prefix = learned_prefix(family, 6)
    return [
        Request(inside, sampling=PARAMS, soft=few),
        Request(random_ids(5, 4), sampling=PARAMS, adapter=one),
        Request(ends, prefix, 6, PARAMS, soft=many),
        Request(random_ids(7, 5), sampling=PARAMS),
        Request(random_ids(3, 6), prefix, 6, PARAMS, adapter=other),
        Request(inside, prefix, 6, PARAMS, soft=few, adapter=one),
        Request(ends, sampling=PARAMS, soft=soft_tokens(family, 5, 9), adapter=other),
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("step_tokens", [7, 512], ids=["chunks", "whole"])
def test_a_mixed_batch_equals_each_alone(family, step_tokens):
    asked = requests(family)
    engine = manual_engine(family, step_tokens=step_tokens)
    streams = [engine.submit(request) for request in asked]
    run_until_idle(engine)
    for request, stream in zip(asked, streams, strict=True):
        assert_greedy(family, request, tokens_of(stream))


def test_soft_tokens_that_there_are_not():
    engine = manual_engine("llama")
    with pytest.raises(RequestError, match=r"token id -3 is outside"):
        engine.submit(Request((5, soft_id(2)), soft=soft_tokens("llama", 2)))
    with pytest.raises(RequestError, match=r"token id -1 is outside"):
        engine.submit(Request((5, soft_id(0))))
    with pytest.raises(RequestError, match=r"soft tokens of width 3, the model takes 48"):
        engine.submit(Request((5, soft_id(0)), soft=torch.zeros(1, 3)))


def test_an_adapter_of_another_model_is_refused():
    with pytest.raises(
        ModelMismatch, match=r"changes the layer transformer.h.0.attn.c_attn, which LlamaForCausalLM has"
    ):
        manual_engine("llama").submit(Request((5,), adapter=adapter("gpt2")))
    wide = Adapter({"model.layers.0.self_attn.q_proj": LowRank(torch.zeros(2, 9), torch.zeros(64, 2))})
    with pytest.raises(ModelMismatch, match=r"from 9 to 64 numbers, the model's has 48 and 64"):
        manual_engine("llama").submit(Request((5,), adapter=wide))


def test_a_layer_that_never_runs_as_a_module_is_found_out():
    """The output matrix of gate and up would be lost if a model multiplied by their weights directly."""
    lm = tiny_model("llama")
    layers = lm.model.model.layers[0].mlp
    whole = layers.forward

    def fused(x: Tensor) -> Tensor:
        gate, up = (torch.nn.functional.linear(x, m.weight) for m in (layers.gate_proj, layers.up_proj))
        return layers.down_proj(layers.act_fn(gate) * up)

    layers.forward = fused
    try:
        engine = manual_engine("llama")
        stream = engine.submit(Request((5, 6), sampling=PARAMS, adapter=adapter("llama")))
        run_until_idle(engine)
    finally:
        layers.forward = whole
    (chunk,) = list(stream)
    assert chunk.finish_reason == "error"
    assert "does not run its layer model.layers.0.mlp.gate_proj as a module, so an adapter on it would be lost" in (
        chunk.error or ""
    )


def test_requests_without_an_adapter_do_not_see_the_others():
    with Engine(tiny_model("llama"), cache_bytes=1 << 20) as engine:
        plain = make_request(5, 3, max_tokens=8)
        (before,) = engine.generate([plain])
        mixed = [Request(random_ids(5, 9), sampling=PARAMS, adapter=adapter("llama")), plain]
        _, beside = engine.generate(mixed)
        (after,) = engine.generate([plain])
    assert tokens_of(before) == tokens_of(beside) == tokens_of(after)


def test_lowering_runs_with_the_adapter_on():
    lm, changes = tiny_model("llama"), adapter("llama")
    soft = soft_tokens("llama", 4)
    prefix = lower(lm, Front(soft=soft, adapter=changes))
    model = with_peft("llama", changes)
    with torch.no_grad():
        past = model(inputs_embeds=soft[None], use_cache=True).past_key_values
    for layer, key in enumerate(prefix.keys):
        torch.testing.assert_close(key, past.layers[layer].keys[0], atol=1e-5, rtol=0)


def test_an_adapter_hook_refuses_a_layer_that_sees_other_tokens():
    """A router that sends tokens to experts hands their layers fewer tokens than the batch has."""
    from foreword.adapters import AdapterHooks
    from foreword.core import Batch

    layer = torch.nn.Linear(4, 4)
    model = torch.nn.ModuleDict({"expert": layer})
    hooks = AdapterHooks(model)
    changes = Adapter({"expert": LowRank(torch.ones(1, 4), torch.ones(4, 1))})
    hooks.activate(Batch((2, 3), (None, None), (None, None), torch.arange(5), adapters=(changes, None)))
    with pytest.raises(UnsupportedModel, match="an adapter cannot find its own"):
        layer(torch.zeros(1, 2, 4))


@pytest.mark.parametrize("learning", [False, True])
def test_an_adapter_does_not_outlive_its_forward(learning):
    """Nor does it reach another wrapper of the same model, or the model itself."""
    lm = tiny_model("llama")
    other = replace(lm, name="another wrapper")
    batch = Batch.from_rows(Front(), [[5, 6, 7]])
    rows = torch.tensor([2])
    with torch.no_grad():
        before = other.logits(batch, rows)
    with torch.set_grad_enabled(learning):
        changed = lm.logits(Batch.from_rows(Front(adapter=adapter("llama")), [[5, 6, 7]]), rows).detach()
    assert not torch.allclose(changed, before, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(other.logits(batch, rows), before)
        torch.testing.assert_close(lm.logits(batch, rows), before)
