"""Tiny random encoders, each with an attention of its own kind, proved and wrapped as `load_model` would."""

from __future__ import annotations

from functools import cache

import torch
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    ConvBertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    EuroBertConfig,
    IBertConfig,
    LongformerConfig,
    MobileBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    RoFormerConfig,
    SqueezeBertConfig,
    YosoConfig,
)

from foreword import attention
from foreword.models import LanguageModel
from foreword.models.ways import wrap_model
from tiny_models import SIZES, byte_tokenizer

RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
IDS = {"pad_token_id": 257, "bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None}
DISTIL = {"dim": 48, "hidden_dim": 64, "n_layers": 3, "n_heads": 4, "vocab_size": 300}
MOBILE = {**SIZES, "embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32}
CONFIGS = {
    "albert": lambda: AlbertConfig(**SIZES, embedding_size=32),
    "distilbert": lambda: DistilBertConfig(**DISTIL),
    "modernbert": lambda: ModernBertConfig(**SIZES, **IDS, local_attention=8, global_attn_every_n_layers=3),
    "eurobert": lambda: EuroBertConfig(**SIZES, **IDS),
    "deberta": lambda: DebertaConfig(**SIZES, **RELATIVE),
    "deberta-v3": lambda: DebertaV2Config(
        **SIZES, **RELATIVE, share_att_key=True, position_buckets=16, position_biased_input=False
    ),
    "mpnet": lambda: MPNetConfig(**SIZES),
    "roformer": lambda: RoFormerConfig(**SIZES, embedding_size=32),
    "squeezebert": lambda: SqueezeBertConfig(**SIZES, embedding_size=48),
    "yoso": lambda: YosoConfig(**SIZES),
    "convbert": lambda: ConvBertConfig(**SIZES, embedding_size=32),
    "mobilebert": lambda: MobileBertConfig(**MOBILE),
    "longformer": lambda: LongformerConfig(**SIZES, attention_window=8),
    "ibert": lambda: IBertConfig(**SIZES),
}
RAGGED = ("albert", "distilbert", "modernbert", "eurobert")
PLACEHOLDERS = (
    "deberta",
    "deberta-v3",
    "mpnet",
    "roformer",
    "squeezebert",
    "yoso",
    "convbert",
    "mobilebert",
    "longformer",
    "ibert",
)


def bare_encoder(config) -> PreTrainedModel:
    """The same random weights at every call; spread wide enough that a lost prefix shows."""
    attention.register()
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation=attention.ATTN_IMPLEMENTATION)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
    return model.eval().requires_grad_(False)


@cache
def tiny_encoder(family: str) -> LanguageModel:
    return wrap_model(bare_encoder(CONFIGS[family]()), byte_tokenizer(), name=f"tiny-{family}")
