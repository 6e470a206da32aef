"""Flat prefixes: one row a position with keys and values of all layers, as PEFT and THUDM's P-tuning v2 save them.

``[P, layers * 2 * kv_heads * dim]``, where a row reads ``[layers, key then value, kv_heads, dim]``.
"""

from __future__ import annotations

from inspect import signature

import torch
from torch import Tensor
from transformers import DynamicCache

from foreword.core import Batch, Front, KVPrefix, LayerShape, ModelIdentity
from foreword.errors import ModelMismatch, PromptTooLong, UnsupportedModel, UsageError
from foreword.models import LanguageModel
from foreword.models.attention_implementation import eager_attention
from foreword.models.language_model import model_body
from foreword.models.placeholder_model import PlaceholderModel
from foreword.models.probe import FORWARD_ERRORS, compare

# Ids of a row, and as many positions of a prefix in front.
PROBED = (7, 23, 11, 42, 5)


def uniform_layer_shape(model: ModelIdentity, what: str) -> LayerShape:
    """The shape of every layer. Raises UsageError if layers differ or keep states, which a flat prefix cannot
    represent."""
    if model.keeps_states:
        raise UsageError(f"{what} holds keys and values alone, layers of {model.architecture} keep states besides.")
    shapes = set(model.layers)
    shape = model.layers[0]
    if len(shapes) > 1 or shape.key_dim != shape.value_dim:
        raise UsageError(
            f"{what} has one shape for keys and values of all layers, those of {model.architecture} differ; use a "
            "model with equal layers."
        )
    return shape


def row_width(model: ModelIdentity, what: str) -> int:
    """Elements of a row. Raises as `uniform_layer_shape` does."""
    shape = uniform_layer_shape(model, what)
    return len(model.layers) * 2 * shape.kv_heads * shape.key_dim


def check_room(lm: LanguageModel, length: int, what: str) -> None:
    """Raise PromptTooLong if ``length`` positions leave no room for a request."""
    if lm.context is not None and length >= lm.context:
        raise PromptTooLong(
            f"{what} has {length} positions, the context of {lm.name} is {lm.context}; no request fits behind it."
        )


def check_past_key_values(lm: LanguageModel, what: str) -> None:
    """Raise UsageError for an encoder to which ``past_key_values``, as which PEFT hands a prefix on, are no prefix.

    Most swallow the keyword and answer as if there were none, and some count positions from 0 again behind them
    (EuroBERT). One that runs on placeholder tokens keeps its keys as they leave their projections, which are others.
    """
    if lm.causal or lm.is_encoder_decoder:
        return
    known = "past_key_values" in signature(model_body(lm.model).forward).parameters
    if not known or isinstance(lm, PlaceholderModel) or not _stands_in_front(lm):
        raise UsageError(
            f"{what} cannot be a prefix of PEFT: PEFT hands prefixes on as past_key_values, which "
            f"{lm.identity.architecture} does not put in front of its keys and positions; use prompt-tuning or lora "
            "with PEFT."
        )


@torch.no_grad()
def _stands_in_front(lm: LanguageModel) -> bool:
    """Whether Transformers, given a prefix as ``past_key_values`` and no positions, answers as Foreword behind it."""
    draw = torch.Generator().manual_seed(0)
    row, cache, pairs = [token % lm.vocab_size for token in PROBED], DynamicCache(), []
    for index, layer in enumerate(lm.identity.layers):
        key, value = (
            torch.randn(layer.kv_heads, len(row), dim, generator=draw).to(lm.device, lm.dtype)
            for dim in (layer.key_dim, layer.value_dim)
        )
        cache.update(key[None], value[None], index)
        pairs.append((key, value))
    keys, values = zip(*pairs, strict=True)
    found, without = (
        lm.hidden_states(Batch.from_rows(front, [row], device=lm.device), torch.arange(len(row), device=lm.device))
        for front in (Front(KVPrefix(lm.identity, keys, values, offset=len(row))), Front())
    )
    try:
        with eager_attention(lm.model):
            ids = torch.tensor([row], device=lm.device)
            mask = torch.ones(1, 2 * len(row), dtype=torch.long, device=lm.device)
            output = model_body(lm.model)(input_ids=ids, attention_mask=mask, past_key_values=cache)
        return compare(found, without, output.last_hidden_state[0]).share <= 1
    except (*FORWARD_ERRORS, UnsupportedModel):
        return False


def unflatten(lm: LanguageModel, flat: Tensor, what: str) -> KVPrefix:
    """The `KVPrefix` of a flat prefix, in the model's dtype; requests start at position ``P``. In an encoder-decoder it
    stands in front of the decoder alone.

    Args:
        lm: the model that it was made for.
        flat: ``[P, layers * 2 * kv_heads * dim]``.
        what: how to name it in errors.

    Raises:
        ModelMismatch: it is of another width.
        PromptTooLong: it leaves no room for a request.
    """
    model = lm.identity.decoder_only
    shape, expected = uniform_layer_shape(model, what), row_width(model, what)
    if flat.dim() != 2 or flat.shape[1] != expected:
        raise ModelMismatch(
            f"{what} must have {expected} numbers a position for {lm.name} ({len(model.layers)} layers of 2 x "
            f"{shape.kv_heads} x {shape.key_dim}), found {list(flat.shape)}; give the model it was made for with "
            "--model."
        )
    check_room(lm, flat.shape[0], what)
    rows = flat.to(device=lm.device, dtype=lm.dtype)
    # [P, layers, 2, kv_heads, dim] -> [layers, 2, kv_heads, P, dim]
    layers = rows.reshape(rows.shape[0], -1, 2, shape.kv_heads, shape.key_dim).permute(1, 2, 3, 0, 4)
    keys, values = (tuple(layer[which].contiguous() for layer in layers) for which in (0, 1))
    return KVPrefix(model, keys, values, offset=rows.shape[0])


def flatten(prefix: KVPrefix, what: str) -> Tensor:
    """Inverse of `unflatten`, in the prefix's dtype on the CPU. Raises UsageError for layers of different shapes."""
    uniform_layer_shape(prefix.model, what)
    layers = [torch.stack(pair) for pair in zip(prefix.keys, prefix.values, strict=True)]
    rows = torch.stack(layers).permute(3, 0, 1, 2, 4).reshape(prefix.length, -1)
    return rows.detach().cpu().contiguous()
