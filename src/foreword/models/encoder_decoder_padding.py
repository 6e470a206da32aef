"""Whether an encoder-decoder takes padding in front of its decoder's tokens: measured, not looked up by its name."""

from __future__ import annotations

from inspect import signature

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from foreword.core import Batch, Front
from foreword.models.encoder_decoder import EncodedTexts, EncoderDecoder

TEXT = (3, 4, 5, 6, 7)
ANSWER = (8, 9, 10)
PADDING = 16


@torch.no_grad()
def pads_in_front(lm: EncoderDecoder) -> bool:
    """Whether a masked beginning of the decoder's cache leaves the logits behind it as they are.

    So it is where positions are relative or rotated, and not where they are counted from the beginning of the cache.
    """
    if "decoder_attention_mask" not in signature(lm.model.forward).parameters:
        return False
    encoded = lm.encode(Batch.from_rows(Front(), [TEXT], device=lm.device))
    alone, padded = (_last_logits(lm, encoded, padding) for padding in (0, PADDING))
    # Tight: a model that is taken for one without padding is only slower, the other way round it would answer wrongly.
    tolerance = max(4 * torch.finfo(lm.dtype).eps, 1e-5)
    return float((alone - padded).abs().max()) <= tolerance * float(alone.abs().max())


def _last_logits(lm: EncoderDecoder, encoded: EncodedTexts, padding: int) -> Tensor:
    """Logits ``[vocab]`` float32 behind an answer whose cache begins with so many masked positions."""
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    logits = encoded.states
    masked = torch.zeros(1, padding, dtype=torch.long, device=lm.device)
    for position, token in enumerate((*(ANSWER[0],) * padding, lm.decoder_start_token_id, *ANSWER)):
        own = torch.ones(1, max(0, position - padding), dtype=torch.long, device=lm.device)
        mask = torch.cat([masked[:, :position], own], dim=1) if padding else None
        logits = lm.decode(torch.tensor([token], device=lm.device), encoded, cache, mask)
    return logits[0].float()
