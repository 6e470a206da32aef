"""The support probe of encoder-decoders: embeddings at the encoder's input must give the logits of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foreword.core import Batch, Front, LayerShape, soft_id
from foreword.errors import UnsupportedModel
from foreword.models.encoder_decoder import EncoderDecoder, decoder_layers, empty_cache, encoder_output
from foreword.models.probe import compare, prove_by
from foreword.models.proof import Comparison, Proof

# Tokens of the two texts that are compared, of the embeddings in the first, and of the answer.
LONG, SHORT, SOFT, ANSWER = 14, 8, 3, 4
# For what depends on no text.
IDS = (3, 4, 5, 6, 7, 8, 9)


def decoder_start_token_id(model: Any) -> int:
    """The token that the decoder begins with. Raises UnsupportedModel if no configuration names it."""
    for config in (model.config, getattr(model, "generation_config", None)):
        found = getattr(config, "decoder_start_token_id", None)
        if found is not None:
            return int(found)
    raise UnsupportedModel(
        f"{type(model).__name__} does not say what its decoder begins with; set decoder_start_token_id in config.json."
    )


def forced_bos_token_id(model: Any) -> int | None:
    """The token that ``generate`` begins every answer with (BART; the language of mBART and NLLB); ``None`` without."""
    for config in (getattr(model, "generation_config", None), model.config):
        found = getattr(config, "forced_bos_token_id", None)
        if found is not None:
            return int(found)
    return None


@torch.no_grad()
def decoder_layer_shapes(model: Any) -> tuple[LayerShape, ...]:
    """Shapes of the decoder's self-attention cache, one a layer."""
    text, begun = (torch.tensor([[token]], device=model.device) for token in (IDS[0], decoder_start_token_id(model)))
    # Apart: Switch hands use_cache to its encoder too, which refuses it.
    encoded = encoder_output(model.get_encoder()(input_ids=text).last_hidden_state)
    cache = empty_cache()  # ProphetNet lays out another number of layers by itself
    model(encoder_outputs=encoded, decoder_input_ids=begun, past_key_values=cache, use_cache=True)
    pairs = [(layer.keys, layer.values) for layer in decoder_layers(cache)]
    return tuple(LayerShape(key.shape[1], key.shape[-1], value.shape[-1]) for key, value in pairs)


@torch.no_grad()
def embed_scale(model: Any) -> float:
    """What the encoder multiplies the embeddings of its tokens with, where its ``inputs_embeds`` are taken as they are
    (Marian, Pegasus); 1 where it does so itself or not at all."""
    encoder = model.get_encoder()
    scale = float(getattr(encoder, "embed_scale", 1.0))
    ids = torch.tensor([IDS], device=model.device)
    embedded = model.get_input_embeddings()(ids)
    given = (encoder(input_ids=None, inputs_embeds=factor * embedded) for factor in (1.0, scale))
    expected = encoder(input_ids=ids).last_hidden_state
    plain, scaled = (float((each.last_hidden_state - expected).abs().max()) for each in given)
    return scale if scaled < plain else 1.0


@torch.no_grad()
def probe_encoder_decoder(lm: EncoderDecoder) -> Proof:
    """Compare embeddings in a padded batch with Transformers on the tokens of ordinary texts.

    Raises:
        UnsupportedModel: the difference is more than rounding, or some outputs are not finite.
    """
    proof = prove_by(lm, lambda first, second: _compare(lm, (first[:LONG], second[:SHORT])))
    if not proof.share <= 1:
        raise UnsupportedModel(
            f"{lm.identity.architecture} does not give the same logits for embeddings as for the tokens that they "
            f"are of: they differ by {proof.difference:.3g}, where zeros in their place change them by "
            f"{proof.effect:.3g}."
        )
    return proof


def _compare(lm: EncoderDecoder, texts: Sequence[Sequence[int]]) -> Comparison:
    """Two texts, of which the shorter is padded; the first tokens of the first are given as embeddings."""
    answer = texts[0][-ANSWER:]
    reference = torch.cat([_reference_logits(lm, text, answer) for text in texts])
    embedded = lm.model.get_input_embeddings()(torch.tensor(texts[0][:SOFT], device=lm.device)) * lm.embed_scale
    blank = torch.zeros_like(embedded)
    found, without = (_padded_batch_logits(lm, texts, answer, soft) for soft in (embedded, blank))
    return compare(found, without, reference)


def _reference_logits(lm: EncoderDecoder, text: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Logits ``[tokens, vocab]`` of the answer to one text, by Transformers alone."""
    ids, written = (torch.tensor([row], device=lm.device) for row in (text, (lm.decoder_start_token_id, *answer)))
    return lm.model(input_ids=ids, decoder_input_ids=written, use_cache=False).logits[0]


def _padded_batch_logits(
    lm: EncoderDecoder, texts: Sequence[Sequence[int]], answer: Sequence[int], soft: Tensor
) -> Tensor:
    """The same of all texts in one batch, with embeddings in place of the first text's first tokens."""
    rows = [(*map(soft_id, range(SOFT)), *texts[0][SOFT:]), answer, texts[1], answer]
    batch = Batch.from_rows(Front(inner_soft=soft), rows, (None, 0, None, 2), lm.device)
    indices = [index for text in (0, 2) for index in range(batch.starts[text + 1] - 1, batch.starts[text + 2])]
    return lm.logits(batch, torch.tensor(indices, device=lm.device))
