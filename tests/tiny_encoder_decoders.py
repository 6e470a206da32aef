"""Tiny random encoder-decoders, as `tiny_models.tiny_model` makes models of the other kinds."""

from __future__ import annotations

from functools import cache, partial
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

from foreword.core import KVPrefix
from foreword.models.encoder_decoder import EncoderDecoder
from foreword.models.ways import wrap_model
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
    # It takes its start token for padding where that is the same and there is no cache.
    "t5gemma": lambda: T5GemmaConfig(
        encoder=dict(GEMMA), decoder=dict(GEMMA), **{**SPECIALS, "decoder_start_token_id": END}
    ),
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


def learned_prefix(lm: EncoderDecoder, length: int, seed: int = 0, *, decoder_only: bool = False) -> KVPrefix:
    """Random keys and values in front of the decoder, and of cross-attention and encoder unless ``decoder_only``."""
    identity = lm.identity.decoder_only if decoder_only else lm.identity
    generator = torch.Generator().manual_seed(seed)
    keys = tuple(torch.randn(s.kv_heads, length, s.key_dim, generator=generator) for s in identity.layers)
    values = tuple(torch.randn(s.kv_heads, length, s.value_dim, generator=generator) for s in identity.layers)
    return KVPrefix(identity, keys, values, offset=length)


def projections(family: str, model) -> list[tuple[torch.nn.Linear, torch.nn.Linear]]:
    """Key and value projections in the order of a prefix's layers: decoder, cross-attention, encoder."""
    if family == "t5":
        decoder, encoder = model.decoder.block, model.encoder.block
        attentions = [each.layer[0].SelfAttention for each in decoder]
        attentions += [each.layer[1].EncDecAttention for each in decoder]
        return [(each.k, each.v) for each in (*attentions, *(each.layer[0].SelfAttention for each in encoder))]
    decoder, encoder = model.model.decoder.layers, model.model.encoder.layers
    attentions = [each.self_attn for each in decoder] + [each.encoder_attn for each in decoder]
    return [(each.k_proj, each.v_proj) for each in (*attentions, *(each.self_attn for each in encoder))]


@torch.no_grad()
def stock_logits(family: str, model, embedded: torch.Tensor, written: list[int], prefix: KVPrefix | None = None):
    """Logits ``[1 + written, vocab]`` of one text by Transformers alone: no padding, no cache, and in front of it and
    of the answer tokens whose keys and values are overwritten by those of the prefix.

    Args:
        embedded: input embeddings ``[1, T, hidden]`` of the text.
    """
    length = prefix.length if prefix is not None else 0
    whole = prefix is not None and len(prefix.keys) > 3
    handles = []
    if prefix is not None:
        for pair, *sides in zip(projections(family, model), prefix.keys, prefix.values, strict=False):
            for projection, side in zip(pair, sides, strict=True):
                rows = side.transpose(0, 1).flatten(1)
                handles.append(projection.register_forward_hook(partial(_overwrite, rows)))
    front = torch.zeros(1, length if whole else 0, embedded.shape[2])
    start = model.config.decoder_start_token_id
    begun = torch.tensor([[start] * (length + 1) + written])
    try:
        output = model(inputs_embeds=torch.cat([front, embedded], dim=1), decoder_input_ids=begun, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return output.logits[0, length:]


def _overwrite(rows: torch.Tensor, _module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows[None], output[:, len(rows) :]], dim=1)
