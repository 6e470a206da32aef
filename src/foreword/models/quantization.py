"""What a model's weights are quantized to: by the checkpoint, or by torchao when it is loaded (``--quantize``)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from foreword.errors import SettingError, UsageError

GROUP_SIZE = 32


def _int8(torchao: Any) -> Any:
    return torchao.Int8WeightOnlyConfig()


def _int4(torchao: Any) -> Any:
    # The one form of 4 bits that multiplies on every device: each number takes a byte, so memory is that of int8.
    group = torchao.granularity.PerGroup(GROUP_SIZE)
    return torchao.IntxWeightOnlyConfig(weight_dtype=getattr(torch, "int4"), granularity=group)  # noqa: B009


QUANTIZE: dict[str, Callable[[Any], Any]] = {"int8": _int8, "int4": _int4}
"""Kinds of weights that a plain checkpoint can be loaded with, and how torchao's module configures each."""


def quantization_options(quantize: str | None, config: Any, name: str) -> dict[str, Any]:
    """Options of Transformers' ``from_pretrained`` that quantize the weights; none for ``None``.

    Args:
        quantize: a name in `QUANTIZE`, or ``None``.
        config: the checkpoint's.
        name: of the model, for errors.

    Raises:
        SettingError: there is no such kind.
        UsageError: torchao is not installed, or the checkpoint is quantized already.
    """
    if quantize is None:
        return {}
    if quantize not in QUANTIZE:
        raise SettingError("quantize", f"unknown quantization {quantize!r}; choose {' or '.join(QUANTIZE)}.")
    if (found := quantization(config)) is not None:
        raise UsageError(f"{name} is quantized already ({found}); leave out --quantize.")
    try:
        made = QUANTIZE[quantize](import_module("torchao.quantization"))
    except ImportError as error:
        raise UsageError(f"--quantize needs torchao: pip install 'foreword[quantize]' ({error}).") from error
    from transformers import TorchAoConfig

    return {"quantization_config": TorchAoConfig(made)}


def quantization(config: Any) -> str | None:
    """The back end and the kind of numbers, such as ``bitsandbytes 4 bits``; ``None`` for plain weights.

    Args:
        config: Transformers' configuration of the model.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    settings = found if isinstance(found, dict) else found.to_dict()
    method = settings.get("quant_method", "unknown")
    return " ".join([str(getattr(method, "value", method)), *_numbers(settings)])


def _numbers(settings: dict[str, Any]) -> list[str]:
    if settings.get("quant_type"):
        return _torchao_kind(settings["quant_type"])
    bits = {"load_in_4bit": 4, "load_in_8bit": 8}
    known = [count for flag, count in bits.items() if settings.get(flag)] or [settings.get("bits")]
    return [f"{count} bits" for count in known if count]


def _torchao_kind(quant_type: Any) -> list[str]:
    """Of ``{"default": {"_type": "IntxWeightOnlyConfig", "_data": {"weight_dtype": {"_data": "int4"}}}}``."""
    if not isinstance(quant_type, dict):
        return [str(quant_type)]
    found = quant_type.get("default", quant_type)
    dtype = found.get("_data", {}).get("weight_dtype") or {}
    return [str(found.get("_type")).removesuffix("Config"), *([str(dtype["_data"])] if dtype else [])]
