"""More tiny families than `models` has, for what differs between them: rotations, positions, layouts of checkpoints."""

from __future__ import annotations

from functools import cache

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Glm4Config,
    GlmConfig,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    SmolLM3Config,
)

from foreword import attention
from foreword.models import LanguageModel
from foreword.models.ways import wrap_model
from tiny_models import GROUPED, SIZES, byte_tokenizer, tiny_model

SPECIAL = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
# Without a head width of their own: hidden size over heads.
NARROW = {key: value for key, value in GROUPED.items() if key != "head_dim"} | SPECIAL


def _stretched(kind: str, **more: object) -> LlamaConfig:
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **more}
    return LlamaConfig(**{**GROUPED, "max_position_embeddings": 96}, rope_parameters=rope)


MORE = {
    "glm": lambda: GlmConfig(**GROUPED, **SPECIAL),
    "glm4": lambda: Glm4Config(**GROUPED, **SPECIAL),
    "phi3": lambda: Phi3Config(**NARROW),
    "cohere": lambda: CohereConfig(**NARROW),
    "smollm3": lambda: SmolLM3Config(**NARROW, no_rope_layers=[1, 0, 1]),
    "opt": lambda: OPTConfig(
        vocab_size=SIZES["vocab_size"],
        hidden_size=48,
        word_embed_proj_dim=48,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        **SPECIAL,
    ),
    "yarn": lambda: _stretched("yarn", original_max_position_embeddings=24),
    "dynamic": lambda: _stretched("dynamic"),
    "longrope": lambda: _stretched(
        "longrope", short_factor=[1.0] * 8, long_factor=[2.0] * 8, original_max_position_embeddings=48
    ),
}


@cache
def family(name: str) -> LanguageModel:
    """The same random weights at every call, in float32."""
    return _made(name, MORE[name](), spread=0.12) if name in MORE else tiny_model(name)


@cache
def deep() -> LanguageModel:
    """Many layers in bfloat16: rounding of the hidden states adds up, as in large models."""
    return _made("deep", LlamaConfig(**{**GROUPED, "num_hidden_layers": 24}), spread=0.3, dtype=torch.bfloat16)


def _made(name: str, config: PreTrainedConfig, *, spread: float, dtype: torch.dtype = torch.float32) -> LanguageModel:
    attention.register()
    torch.manual_seed(sum(map(ord, name)))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.ATTN_IMPLEMENTATION)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, spread)
    model.to(dtype).eval().requires_grad_(False)
    return wrap_model(model, byte_tokenizer(), name=f"tiny-{name}")
