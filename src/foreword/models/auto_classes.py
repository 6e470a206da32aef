"""`auto_classes`: the ``AutoModel...`` classes of Transformers that a checkpoint is loaded with."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
)


def auto_class(config: Any) -> Any:
    """The ``AutoModel...`` class that most checkpoints with this configuration are for."""
    return auto_classes(config)[0]


def auto_classes(config: Any) -> tuple[Any, ...]:
    """The ``AutoModel...`` classes that may load a model with this configuration.

    A checkpoint belongs to the first whose weights it has all: of one that reads images too, the text side alone may
    have a class; a sentence encoder or a classifier has hidden states that are whole, and no output matrix for words.
    """
    if getattr(config, "is_encoder_decoder", False):
        return (AutoModelForSeq2SeqLM,)
    encoder = (AutoModelForMaskedLM, AutoModel)
    names = getattr(config, "architectures", None) or []
    if any(name.endswith("ForMaskedLM") for name in names):
        return encoder
    own_code = getattr(config, "auto_map", None) or {}
    causal = type(config) in AutoModelForCausalLM._model_mapping or "AutoModelForCausalLM" in own_code
    multimodal = is_multimodal(config)
    if not (causal or multimodal) or _is_encoder(config):
        named = getattr(transformers, names[0], None) if names else None
        # The text side alone of some models has a class and is in no list (Emu3).
        listed = type(config) in AutoModel._model_mapping
        return (named,) if not listed and getattr(named, "config_class", None) is type(config) else encoder
    return (*[AutoModelForCausalLM] * causal, *[AutoModelForMultimodalLM] * multimodal)


def is_causal(model: Any) -> bool:
    """Whether a loaded model writes: by its configuration, or by its class where that is the text side's alone."""
    config = model.config
    if AutoModelForMaskedLM not in auto_classes(config):
        return True
    return model.can_generate() and type(config) not in AutoModelForMaskedLM._model_mapping


def is_multimodal(config: Any) -> bool:
    """Whether a configuration is that of a model that writes, and reads images, video or sound beside text."""
    known = type(config) in AutoModelForMultimodalLM._model_mapping
    return known and not getattr(config, "is_encoder_decoder", False)


def _is_encoder(config: Any) -> bool:
    """BERT-like configs are registered for both heads and say by ``is_decoder`` which one they are."""
    return type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False)
