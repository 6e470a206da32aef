"""Whether an encoder-decoder takes padding in front of its decoder's tokens: measured, not looked up by its name."""

from __future__ import annotations

from inspect import signature

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EncoderDecoderCache

from foreword.core import Batch, Front
from foreword.models.encoder_decoder import EncoderDecoder, decoder_layers, filled_cache

TEXT = (3, 4, 5, 6, 7)
ANSWER = (8, 9, 10)
PADDING = 16


@torch.no_grad()
def pads_in_front(lm: EncoderDecoder) -> bool:
    """Whether a masked beginning of the decoder's cache leaves the logits behind it as they are.

    So it is where positions are relative or rotated, or where `positions_of_rows` mends that they are counted from the
    beginning of the cache.
    """
    if "decoder_attention_mask" not in signature(lm.model.forward).parameters:
        return False
    alone, padded = (_last_logits(lm, padding) for padding in (0, PADDING))
    # Tight: a model that is taken for one without padding is only slower, the other way round it would answer wrongly.
    tolerance = max(4 * torch.finfo(lm.dtype).eps, 1e-5)
    return float((alone - padded).abs().max()) <= tolerance * float(alone.abs().max())


def _last_logits(lm: EncoderDecoder, padding: int) -> Tensor:
    """Logits ``[vocab]`` float32 behind an answer whose cache begins with so many masked positions, beside another's
    that begins with as many others."""
    begun = lm.begin(Batch.from_rows(Front(), [TEXT, TEXT], device=lm.device))
    kept = [(layer.keys, layer.values) for layer in decoder_layers(begun.cache)]
    own = [(F.pad(key, (0, 0, padding, 0)), F.pad(value, (0, 0, padding, 0))) for key, value in kept]
    cache = EncoderDecoderCache(filled_cache(own), begun.cache.cross_attention_cache)
    logits = begun.logits
    for length, token in enumerate(ANSWER, 1):
        mask = torch.ones(2, padding + length, dtype=torch.long, device=lm.device)
        mask[0, :padding] = 0
        tokens = torch.full((2,), token, device=lm.device)
        logits = lm.go_on(tokens, begun.encoded, cache, mask if padding else None)
    return logits[0].float()
