"""The support probe of encoder-decoders: what is put in front must give the logits of Transformers on the joined text.

Embeddings at the encoder's input stand for their tokens; a prefix for the front of a text and of its decoder's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foreword.core import Batch, Front, KVPrefix, LayerShape, soft_id
from foreword.errors import UnsupportedModel
from foreword.models.encoder_decoder import EncoderDecoder, decoder_layers, encoder_output, split_heads
from foreword.models.probe import FLOOR, TOLERANCE
from foreword.models.projections import ProjectionHooks
from foreword.models.proof import Proof

# Two texts, of which the shorter is padded; the first tokens of the first are given as embeddings.
TEXTS = ((3, 4, 5, 6, 7, 8, 9), (10, 11, 12, 13))
SOFT = 3
ANSWER = (14, 15)
# As many tokens in front of a decoder's as a prefix has positions.
FRONT = (16, 17, 18)


def decoder_start_token_id(model: Any) -> int:
    """The token that the decoder begins with. Raises UnsupportedModel if no configuration names it."""
    for config in (model.config, getattr(model, "generation_config", None)):
        found = getattr(config, "decoder_start_token_id", None)
        if found is not None:
            return int(found)
    raise UnsupportedModel(
        f"{type(model).__name__} does not say what its decoder begins with; set decoder_start_token_id in config.json."
    )


@torch.no_grad()
def decoder_layer_shapes(model: Any) -> tuple[LayerShape, ...]:
    """Shapes of the decoder's self-attention cache, one a layer."""
    text, begun = (
        torch.tensor([[token]], device=model.device) for token in (TEXTS[0][0], decoder_start_token_id(model))
    )
    # Apart: Switch hands use_cache to its encoder too, which refuses it.
    encoded = encoder_output(model.get_encoder()(input_ids=text).last_hidden_state)
    output = model(encoder_outputs=encoded, decoder_input_ids=begun, use_cache=True)
    pairs = [(layer.keys, layer.values) for layer in decoder_layers(output.past_key_values)]
    return tuple(LayerShape(key.shape[1], key.shape[-1], value.shape[-1]) for key, value in pairs)


@torch.no_grad()
def embed_scale(model: Any) -> float:
    """What the encoder multiplies the embeddings of its tokens with, where its ``inputs_embeds`` are taken as they are
    (Marian, Pegasus); 1 where it does so itself or not at all."""
    encoder = model.get_encoder()
    scale = float(getattr(encoder, "embed_scale", 1.0))
    ids = torch.tensor([TEXTS[0]], device=model.device)
    embedded = model.get_input_embeddings()(ids)
    given = (encoder(input_ids=None, inputs_embeds=factor * embedded) for factor in (1.0, scale))
    expected = encoder(input_ids=ids).last_hidden_state
    plain, scaled = (float((each.last_hidden_state - expected).abs().max()) for each in given)
    return scale if scaled < plain else 1.0


@torch.no_grad()
def probe_encoder_decoder(lm: EncoderDecoder) -> Proof:
    """Compare embeddings in a padded batch with Transformers on the tokens.

    Raises:
        UnsupportedModel: the difference is more than rounding.
    """
    reference = torch.stack([_reference_logits(lm, text) for text in TEXTS])
    embedded = lm.model.get_input_embeddings()(torch.tensor(TEXTS[0][:SOFT], device=lm.device)) * lm.embed_scale
    found, blank = _padded_batch_logits(lm, embedded), _padded_batch_logits(lm, torch.zeros_like(embedded))
    difference, effect = (float((logits - reference).square().mean().sqrt()) for logits in (found, blank))
    tolerance = max(TOLERANCE * torch.finfo(lm.dtype).eps, FLOOR) * effect
    if not difference <= tolerance:
        raise UnsupportedModel(
            f"{lm.identity.architecture} does not give the same logits for embeddings as for the tokens that they "
            f"are of: they differ by {difference:.3g}, where zeros in their place change them by {effect:.3g}."
        )
    return Proof(difference, effect, tolerance, 1)


@torch.no_grad()
def goes_on_from_cache(lm: EncoderDecoder) -> bool:
    """Whether the decoder's cache gives the logits of the tokens that it holds, a token at a time in padded rows."""
    begun = lm.begin(Batch.from_rows(Front(), TEXTS, device=lm.device))
    steps = [begun.logits]
    for token in ANSWER:
        tokens = torch.full((len(TEXTS),), token, device=lm.device)
        steps.append(lm.go_on(tokens, begun.encoded, begun.cache))
    reference = torch.stack([_reference_logits(lm, text) for text in TEXTS])
    return _agree(lm, torch.stack(steps, dim=1).float(), reference, reference.roll(1, 0))


def with_projections(lm: EncoderDecoder) -> EncoderDecoder:
    """The model with hooks on its cross-attention and its encoder; itself if their projections are not found."""
    model = lm.model

    def run() -> None:
        text, begun = (
            torch.tensor([row], device=lm.device) for row in (TEXTS[0], (lm.decoder_start_token_id, *ANSWER))
        )
        model(input_ids=text, decoder_input_ids=begun, use_cache=False)

    try:
        hooks = ProjectionHooks.of(model, run)
    except (UnsupportedModel, RuntimeError, IndexError):  # LED writes to what a projection gives, FSMT turns it around
        return lm
    root = next(name for name, module in model.named_modules() if module is model.get_encoder())
    cross = [number for number, layer in enumerate(hooks.layers) if layer.cross]
    encoder = [number for number, layer in enumerate(hooks.layers) if layer.attention.startswith(f"{root}.")]
    decoder = lm.identity.decoder_only.layers
    if len(cross) != len(decoder) or len(cross) + len(encoder) + len(decoder) != len(hooks.layers):
        return lm
    parts = [(number, "cross-attention") for number in cross] + [(number, "encoder") for number in encoder]
    shapes = (
        LayerShape(layer.kv_heads, layer.key_dim, layer.value_dim, part=part)
        for layer, part in ((hooks.layers[number], part) for number, part in parts)
    )
    identity = replace(lm.identity, layers=(*decoder, *shapes))
    return replace(lm, identity=identity, hooks=hooks, hooked=tuple(cross + encoder))


@torch.no_grad()
def carries_prefixes(lm: EncoderDecoder) -> bool:
    """Whether a prefix made of the front of a joined text gives the logits behind it, in a padded batch."""
    fronts = [_front_of_joined(lm, text) for text in TEXTS]
    rows = [
        Batch.from_rows(Front(prefix), [_own(lm, text), ANSWER], (None, 0), lm.device)
        for text, (prefix, _) in zip(TEXTS, fronts, strict=True)
    ]
    batch = Batch.concat(rows)
    alone = replace(batch, prefixes=(None,) * len(batch.prefixes))
    reference = torch.stack([logits for _, logits in fronts])
    return _agree(lm, _answer_logits(lm, batch), reference, _answer_logits(lm, alone))


def _own(lm: EncoderDecoder, text: Sequence[int]) -> Sequence[int]:
    """What of a text is not in front: all of it where the encoder takes nothing there."""
    return text[SOFT:] if lm.hooks is not None else text


def _front_of_joined(lm: EncoderDecoder, text: Sequence[int]) -> tuple[KVPrefix, Tensor]:
    """The prefix of the first `SOFT` positions of a joined run, and its logits ``[tokens, vocab]`` behind them."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    decoder = (*FRONT, lm.decoder_start_token_id, *ANSWER)
    ids, written = (torch.tensor([row], device=lm.device) for row in (text, decoder))

    def record(layer: int, key: Tensor, value: Tensor) -> None:
        found[layer] = (key[0, :SOFT], value[0, :SOFT])

    with lm.hooks.replaced({}, record) if lm.hooks is not None else nullcontext():
        states = lm.model.get_encoder()(input_ids=ids).last_hidden_state
        output = lm.model(encoder_outputs=encoder_output(states), decoder_input_ids=written, use_cache=True)
    own = [(each.keys[0, :, :SOFT], each.values[0, :, :SOFT]) for each in decoder_layers(output.past_key_values)]
    shapes = lm.identity.layers[lm.num_decoder_layers :]
    own += [
        tuple(split_heads(side, shape) for side in found[number])
        for number, shape in zip(lm.hooked, shapes, strict=True)
    ]
    keys, values = zip(*own, strict=True)
    reference = lm.model(input_ids=ids, decoder_input_ids=written, use_cache=False).logits[0, SOFT:]
    return KVPrefix(lm.identity, keys, values, offset=SOFT), reference.float()


def _agree(lm: EncoderDecoder, found: Tensor, reference: Tensor, blank: Tensor) -> bool:
    """Whether logits differ by no more than rounding, beside how much ``blank`` logits do."""
    difference, effect = (float((each - reference).square().mean().sqrt()) for each in (found, blank))
    return difference <= max(TOLERANCE * torch.finfo(lm.dtype).eps, FLOOR) * effect


def _reference_logits(lm: EncoderDecoder, text: Sequence[int]) -> Tensor:
    """Logits ``[tokens, vocab]`` of the answer to one text, by Transformers alone."""
    ids, written = (torch.tensor([row], device=lm.device) for row in (text, (lm.decoder_start_token_id, *ANSWER)))
    return lm.model(input_ids=ids, decoder_input_ids=written, use_cache=False).logits[0].float()


def _padded_batch_logits(lm: EncoderDecoder, soft: Tensor) -> Tensor:
    """The same ``[texts, tokens, vocab]`` in one batch, with embeddings in place of the first text's first tokens."""
    rows = [(*map(soft_id, range(SOFT)), *TEXTS[0][SOFT:]), ANSWER, TEXTS[1], ANSWER]
    return _answer_logits(lm, Batch.from_rows(Front(inner_soft=soft), rows, (None, 0, None, 2), lm.device))


def _answer_logits(lm: EncoderDecoder, batch: Batch) -> Tensor:
    """``[texts, tokens, vocab]`` behind texts that each have an answer behind them."""
    indices = [index for text in (0, 2) for index in range(batch.starts[text + 1] - 1, batch.starts[text + 2])]
    return lm.logits(batch, torch.tensor(indices, device=lm.device)).float().unflatten(0, (len(TEXTS), -1))
