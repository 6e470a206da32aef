"""Tiny random models that are run through Transformers' cache: with states, with an attention of their own, or both."""

from __future__ import annotations

from functools import cache

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    FalconH1Config,
    GPTJConfig,
    Lfm2Config,
    Llama4TextConfig,
    MambaConfig,
    MptConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    RwkvConfig,
    StableLmConfig,
)

from foreword.models import LanguageModel
from foreword.models.ways import wrap_model
from tiny_models import GROUPED, SHARED, SIZES, VOCABULARY, byte_tokenizer

OWN_NAMES = {"vocab_size": VOCABULARY, "n_layer": 3, "n_head": 4}
LINEAR = {
    **GROUPED,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
CONFIGS = {
    "bloom": lambda: BloomConfig(**OWN_NAMES, hidden_size=48),
    "falcon": lambda: FalconConfig(**SIZES),
    "gptj": lambda: GPTJConfig(**OWN_NAMES, n_embd=48, rotary_dim=8, n_positions=256),
    "mpt": lambda: MptConfig(vocab_size=VOCABULARY, n_layers=3, n_heads=4, d_model=48, max_seq_len=256),
    "stablelm": lambda: StableLmConfig(**{**SIZES, "num_attention_heads": 3, "num_key_value_heads": 3}),
    "llama4": lambda: Llama4TextConfig(
        **GROUPED,
        intermediate_size_mlp=64,
        num_local_experts=2,
        num_experts_per_tok=1,
        attention_chunk_size=8,
        layer_types=["chunked_attention", "full_attention", "chunked_attention"],
        pad_token_id=0,
    ),
    "lfm2": lambda: Lfm2Config(
        **SHARED, layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False
    ),
    "mamba": lambda: MambaConfig(vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=3, state_size=4),
    "falcon_h1": lambda: FalconH1Config(
        **SHARED, mamba_d_ssm=96, mamba_n_heads=4, mamba_d_head=24, mamba_d_state=8, mamba_chunk_size=8, pad_token_id=0
    ),
    "qwen3_next": lambda: Qwen3NextConfig(**LINEAR, **EXPERTS),
    "qwen3_5": lambda: Qwen3_5TextConfig(**LINEAR),
    "rwkv": lambda: RwkvConfig(vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=3, rescale_every=2),
}
# They differ in what a cache keeps: keys alone, states alone (in layers or in a list), both in one layer, both in turn;
# and in their masks.
KINDS = ("bloom", "mamba", "falcon_h1", "lfm2", "llama4", "rwkv")
WITH_STATES = ("mamba", "falcon_h1", "lfm2", "qwen3_next", "qwen3_5", "rwkv")


@cache
def tiny_cached_model(family: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The same random weights at every call; spread wide enough that a lost prefix shows."""
    torch.manual_seed(sum(map(ord, family)))
    model = AutoModelForCausalLM.from_config(CONFIGS[family]()).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
    model.eval().requires_grad_(False)
    return wrap_model(model, byte_tokenizer(), name=f"tiny-{family}")
