"""`wrap_model`: a loaded Transformers model -> a `LanguageModel`, in the first way of carrying that is proved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foreword.core import Batch, Front
from foreword.errors import UnsupportedModel
from foreword.models.attention_implementation import set_attention_implementation
from foreword.models.auto_classes import is_causal
from foreword.models.cached_model import CachedModel, cache_layout
from foreword.models.encoder_decoder import EncoderDecoder
from foreword.models.encoder_decoder_prefixes import with_prefixes
from foreword.models.encoder_decoder_probe import (
    decoder_layer_shapes,
    decoder_start_token_id,
    embed_scale,
    forced_bos_token_id,
    probe_encoder_decoder,
)
from foreword.models.fingerprint import compute_identity
from foreword.models.language_model import LanguageModel, has_lm_head
from foreword.models.packed_linear import pack_linear_layers
from foreword.models.placeholder_layers import check_placeholders, find_neighbours, find_projections, shapes
from foreword.models.placeholder_model import PlaceholderModel
from foreword.models.pooling import default_pooling
from foreword.models.positions import first_position, max_positions
from foreword.models.probe import FORWARD_ERRORS, NotFinite, prove
from foreword.models.quantized_linear import keep_gradients
from foreword.models.ragged_layers import RaggedLayers
from foreword.models.stock_cache import fault_of_stock_cache


def wrap_model(model: Any, tokenizer: Any, *, name: str, folder: Path | None = None) -> LanguageModel:
    """Probe and fingerprint a Transformers model.

    Args:
        model: frozen; loaded with ``attn_implementation="foreword"`` unless it is an encoder-decoder.
        folder: where it was loaded from.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        return _wrap_encoder_decoder(model, tokenizer, name, folder)
    if not isinstance(model.get_input_embeddings(), nn.Module):
        raise UnsupportedModel(
            f"{type(model).__name__} does not read its tokens from a table of embeddings, so a prefix has no place."
        )
    keep_gradients(model)
    lm = _first_proved(model, tokenizer, name, folder)
    token = Batch.from_rows(Front(), [[0]], device=lm.device)
    with torch.no_grad():
        width = lm.hidden_states(token, token.token_ids).shape[-1]
    if width != lm.identity.hidden_size:
        lm = replace(lm, identity=replace(lm.identity, output_size=width))
    pack_linear_layers(model, lambda: (lm.logits if lm.has_lm_head else lm.hidden_states)(token, token.token_ids))
    return lm


def _first_proved(model: Any, tokenizer: Any, name: str, folder: Path | None) -> LanguageModel:
    """The model carried in the first way whose proof holds. Raises UnsupportedModel with the reason of the last one."""
    refusal = None
    for assemble in _ways(model):
        try:
            lm = assemble(model, tokenizer, name, folder)
            return replace(lm, proof=prove(lm))
        except NotFinite:
            raise
        except UnsupportedModel as error:
            refusal = error
    assert refusal is not None
    try:
        fault = fault_of_stock_cache(model) if is_causal(model) else None
    except FORWARD_ERRORS:
        fault = None
    if fault is None:
        raise refusal
    raise UnsupportedModel(fault) from refusal


def _ways(model: Any) -> tuple[Callable[[Any, Any, str, Path | None], LanguageModel], ...]:
    """The ways that a model may be carried in, fastest first: each assembles a `LanguageModel` that is not proved yet.

    An assembler raises UnsupportedModel for a model that it cannot run, and finds it with the attention that it was
    loaded with (``foreword``) or the one that an earlier way has set.
    """
    if not is_causal(model):
        return _on_ragged_rows, _through_placeholders
    # Batches first, then what only some models need: fronts of one length at a time, tokens one at a time.
    cached = [
        partial(_through_cache, mixes_lengths=mixes, one_by_one=one) for one in (False, True) for mixes in (True, False)
    ]
    return (_on_ragged_rows, *cached)


def _through_cache(
    model: Any, tokenizer: Any, name: str, folder: Path | None, *, mixes_lengths: bool, one_by_one: bool
) -> CachedModel:
    # Without a mask, sdpa asks the layers for the direction; in PaliGemma they name another than the model's masks.
    directed = all(getattr(module, "is_causal", True) for module in model.modules())
    set_attention_implementation(model, "sdpa" if model._supports_sdpa and directed else "eager")
    try:
        layout = cache_layout(model)
    except FORWARD_ERRORS as error:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot carry a prefix: its forward failed with {error!r}."
        ) from error
    return CachedModel(
        name,
        model,
        tokenizer,
        compute_identity(model, tokenizer, layout.shapes, folder),
        layers={},
        causal=True,
        context=max_positions(model.config.get_text_config()),
        has_lm_head=has_lm_head(model),
        pooling=default_pooling(causal=True),
        layout=layout,
        mixes_lengths=mixes_lengths,
        one_by_one=one_by_one,
    )


def _on_ragged_rows(model: Any, tokenizer: Any, name: str, folder: Path | None) -> LanguageModel:
    first = first_position(model)
    layers = RaggedLayers.find(model, first)
    limit = max_positions(model.config.get_text_config())
    return LanguageModel(
        name,
        model,
        tokenizer,
        compute_identity(model, tokenizer, layers.shapes, folder),
        layers.numbers,
        layers.causal,
        limit - first if limit else None,
        first_position=first,
        has_lm_head=has_lm_head(model),
        pooling=default_pooling(causal=layers.causal),
    )


def _through_placeholders(model: Any, tokenizer: Any, name: str, folder: Path | None) -> PlaceholderModel:
    set_attention_implementation(model, "sdpa" if model._supports_sdpa else "eager")
    try:
        hooks = find_projections(model)
        neighbours = find_neighbours(model, hooks)
        first = first_position(model)
        limit = max_positions(model.config.get_text_config())
        # Keys are kept as they leave their projections, before any rotation.
        identity = replace(compute_identity(model, tokenizer, shapes(hooks, neighbours), folder), rope="null")
        return check_placeholders(
            PlaceholderModel(
                name,
                model,
                tokenizer,
                identity,
                layers={},
                causal=False,
                context=limit - first if limit else None,
                first_position=first,
                has_lm_head=has_lm_head(model),
                pooling=default_pooling(causal=False),
                hooks=hooks,
                neighbours=neighbours,
            )
        )
    except FORWARD_ERRORS as error:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot carry a prefix: its forward failed with {error!r}."
        ) from error


def _wrap_encoder_decoder(model: Any, tokenizer: Any, name: str, folder: Path | None) -> EncoderDecoder:
    keep_gradients(model)
    try:
        lm = EncoderDecoder(
            name,
            model,
            tokenizer,
            compute_identity(model, tokenizer, decoder_layer_shapes(model), folder),
            layers={},
            causal=False,
            context=getattr(model.config, "max_position_embeddings", None),
            decoder_start_token_id=decoder_start_token_id(model),
            forced_bos_token_id=forced_bos_token_id(model),
            embed_scale=embed_scale(model),
        )
        return with_prefixes(replace(lm, proof=probe_encoder_decoder(lm)))
    except FORWARD_ERRORS as error:
        kind = type(model).__name__
        raise UnsupportedModel(f"{kind} cannot take soft tokens: its forward failed with {error!r}.") from error
