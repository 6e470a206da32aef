"""Flat prefixes: one row a position with keys and values of all layers, as PEFT and THUDM's P-tuning v2 save them.

``[P, layers * 2 * kv_heads * dim]``, where a row reads ``[layers, key then value, kv_heads, dim]``.
"""

from __future__ import annotations

from inspect import signature

import torch
from torch import Tensor

from foreword.core import KVPrefix, LayerShape, ModelIdentity
from foreword.errors import ModelMismatch, PromptTooLong, UsageError
from foreword.models import LanguageModel
from foreword.models.language_model import model_body
from foreword.models.placeholder_model import PlaceholderModel


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
    """Raise UsageError for an encoder without ``past_key_values``, as which PEFT hands a prefix on.

    Most swallow the keyword and answer as if there were no prefix. One that runs on placeholder tokens keeps its keys
    as they leave their projections, which are others.
    """
    if lm.causal or lm.is_encoder_decoder:
        return
    known = "past_key_values" in signature(model_body(lm.model).forward).parameters
    if not known or isinstance(lm, PlaceholderModel):
        raise UsageError(
            f"{what} cannot be a prefix of PEFT: PEFT hands prefixes on as past_key_values, which "
            f"{lm.identity.architecture} does not put in front of its keys; use prompt-tuning or lora with PEFT."
        )


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
