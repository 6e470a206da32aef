"""Where an encoder-decoder carries prefixes: proved place by place when it is loaded.

As everywhere the reference is Transformers' own forward of the joined text, here of an encoder's text and of a
decoder's tokens, and a prefix is what the layers keep of the front of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from foreword.core import Batch, Front, KVPrefix, LayerShape
from foreword.errors import UnsupportedModel
from foreword.models.encoder_decoder import EncoderDecoder, decoder_layers, empty_cache, encoder_output, split_heads
from foreword.models.probe import FORWARD_ERRORS, compare, prove_by
from foreword.models.projections import ProjectionHooks
from foreword.models.proof import Comparison

# Tokens of the two texts that are compared, of the fronts in them, and of the answer.
LONG, SHORT, FRONT, ANSWER = 14, 9, 4, 3
# For what depends on no text.
IDS = (3, 4, 5, 6, 7, 8, 9)

Texts = Sequence[Sequence[int]]


def with_prefixes(lm: EncoderDecoder) -> EncoderDecoder:
    """A model with as many places for prefixes as are proved: all three, those of its decoder, or none."""
    lm = replace(lm, caches=_holds(lm, _compare_cache))
    whole = _with_projections(lm)
    found = whole.hooks.layers if whole.hooks is not None else ()
    layers = {lm.model.get_submodule(layer.attention): [number] for number, layer in enumerate(found)}
    proved = next((each for each in (whole, lm) if _holds(each, _compare_prefixes)), replace(lm, takes_prefixes=False))
    return replace(proved, layers=layers)


def _holds(lm: EncoderDecoder, compare_texts: Callable[[EncoderDecoder, Texts], Comparison]) -> bool:
    try:
        return prove_by(lm, lambda first, second: compare_texts(lm, (first[:LONG], second[:SHORT]))).share <= 1
    except (UnsupportedModel, *FORWARD_ERRORS):
        return False


@torch.no_grad()
def _compare_cache(lm: EncoderDecoder, texts: Texts) -> Comparison:
    """Answers that go on from the decoder's cache, a token at a time in padded rows."""
    answer = texts[0][-ANSWER:]
    begun = lm.begin(Batch.from_rows(Front(), texts, device=lm.device))
    steps = [begun.logits]
    for token in answer:
        tokens = torch.full((len(texts),), token, device=lm.device)
        steps.append(lm.go_on(tokens, begun.encoded, begun.cache))
    reference = [_logits(lm, text, (lm.decoder_start_token_id, *answer)) for text in texts]
    return compare(torch.stack(steps, dim=1).flatten(0, 1), torch.cat(reference[::-1]), torch.cat(reference))


def _with_projections(lm: EncoderDecoder) -> EncoderDecoder:
    """The model with hooks on its cross-attention and its encoder; itself if their projections are not found."""
    model = lm.model

    def run() -> None:
        _logits(lm, IDS, (lm.decoder_start_token_id, *IDS[:ANSWER]))

    try:
        hooks = ProjectionHooks.of(model, run)
    except (UnsupportedModel, *FORWARD_ERRORS):  # LED writes to what a projection gives, FSMT turns it around
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
def _compare_prefixes(lm: EncoderDecoder, texts: Texts) -> Comparison:
    """Two texts in a padded batch, each behind the prefix of its front."""
    written = texts[0][-FRONT:], texts[0][-ANSWER:]
    fronts = [_front_of_joined(lm, text, *written) for text in texts]
    owns = [text[FRONT:] if lm.hooks is not None else text for text in texts]
    rows = [
        Batch.from_rows(Front(prefix), [own, written[1]], (None, 0), lm.device)
        for own, (prefix, _) in zip(owns, fronts, strict=True)
    ]
    batch = Batch.concat(rows)
    alone = replace(batch, prefixes=(None,) * len(batch.prefixes))
    places = [index for text in (0, 2) for index in range(batch.starts[text + 1] - 1, batch.starts[text + 2])]
    chosen = torch.tensor(places, device=lm.device)
    return compare(lm.logits(batch, chosen), lm.logits(alone, chosen), torch.cat([logits for _, logits in fronts]))


def _front_of_joined(
    lm: EncoderDecoder, text: Sequence[int], front: Sequence[int], answer: Sequence[int]
) -> tuple[KVPrefix, Tensor]:
    """The prefix of the first `FRONT` positions of a joined run, and its logits ``[tokens, vocab]`` behind them."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    written = (*front, lm.decoder_start_token_id, *answer)
    ids, begun = (torch.tensor([row], device=lm.device) for row in (text, written))

    def record(layer: int, key: Tensor, value: Tensor) -> None:
        found[layer] = (key[0, :FRONT], value[0, :FRONT])

    with lm.hooks.replaced({}, record) if lm.hooks is not None else nullcontext():
        states = lm.model.get_encoder()(input_ids=ids).last_hidden_state
        cache = empty_cache()
        lm.model(encoder_outputs=encoder_output(states), decoder_input_ids=begun, past_key_values=cache, use_cache=True)
    own = [(each.keys[0, :, :FRONT], each.values[0, :, :FRONT]) for each in decoder_layers(cache)]
    shapes = lm.identity.layers[lm.num_decoder_layers :]
    for number, shape in zip(lm.hooked, shapes, strict=True):
        key, value = found[number]
        own.append((split_heads(key, shape), split_heads(value, shape)))
    keys, values = zip(*own, strict=True)
    return KVPrefix(lm.identity, keys, values, offset=FRONT), _logits(lm, text, written)[FRONT:]


def _logits(lm: EncoderDecoder, text: Sequence[int], written: Sequence[int]) -> Tensor:
    """Logits ``[written, vocab]`` behind one text by Transformers alone, without a cache."""
    ids, begun = (torch.tensor([row], device=lm.device) for row in (text, written))
    return lm.model(input_ids=ids, decoder_input_ids=begun, use_cache=False).logits[0]
