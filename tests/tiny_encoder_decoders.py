"""Tiny random encoder-decoders, as `tiny_models.tiny_model` makes models of the other kinds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    MarianConfig,
    MBartConfig,
    PegasusConfig,
    T5Config,
    T5GemmaConfig,
)

from foreword.models.encoder_decoder import EncoderDecoder
from foreword.models.load import wrap_model
from tiny_models import VOCABULARY, byte_tokenizer

END, PAD = 256, 257
SPECIALS = {"eos_token_id": END, "pad_token_id": PAD, "decoder_start_token_id": PAD, "vocab_size": VOCABULARY}
BART = {
    **SPECIALS,
    "bos_token_id": END,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 256,
    "scale_embedding": True,
}
GEMMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "sliding_window": 8,
    "query_pre_attn_scalar": 12,
    "max_position_embeddings": 256,
}
CONFIGS = {
    "t5": lambda: T5Config(**SPECIALS, d_model=48, d_kv=12, d_ff=64, num_layers=2, num_decoder_layers=3, num_heads=4),
    "bart": lambda: BartConfig(**BART),
    "mbart": lambda: MBartConfig(**BART),
    "marian": lambda: MarianConfig(**BART),
    "pegasus": lambda: PegasusConfig(**BART),
    "t5gemma": lambda: T5GemmaConfig(encoder=dict(GEMMA), decoder=dict(GEMMA), **SPECIALS),
}
FAMILIES = ("t5", "bart")


def random_model(family: str):
    """A Transformers model; the same weights at every call, spread wide enough that lost soft tokens show."""
    torch.manual_seed(sum(map(ord, family)))
    model = AutoModelForSeq2SeqLM.from_config(CONFIGS[family]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
    return model.eval().requires_grad_(False)


@cache
def tiny_encoder_decoder(family: str) -> EncoderDecoder:
    lm = wrap_model(random_model(family), byte_tokenizer(), name=f"tiny-{family}")
    assert isinstance(lm, EncoderDecoder)
    return lm


def save_tiny(family: str, folder: Path) -> Path:
    """An ordinary model folder."""
    lm = tiny_encoder_decoder(family)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder
