"""PEFT's ``adapter_config.json``: checks for plain LoRA, and the scale of each layer."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from foreword.bank.json_document import FieldCheck, describe, is_a
from foreword.errors import CorruptFile

ADAPTER_MEND = "save it again with PEFT or restore it from a copy"
FLOAT32_MAX = 3.4e38
"""Bound of a scale."""

# Fields that do not change PEFT's LoRA forward pass, or that `layer_scale` reads; the tensors name the layers. Others
# must have a value of `_UNSET`.
_ALLOWED_FIELDS = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
        *("inference_mode", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
        *("bias", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
    }
)
_UNSET = (None, False, [], {}, "")
# Without PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ, whose initial values PEFT subtracts from the base model's weights.
_INITS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
# PEFT takes any regular expression; ones with groups may backtrack for ever, so they are refused.
_PLAIN = re.compile(r"\^?(?:\.\*|\\d\+|\[0-9\]\+|\\\.|[\w.-])+\$?", re.ASCII)
_WILDCARDS = 2
_Rank = Annotated[int, Field(ge=1)]
_Scale = Annotated[float, Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX, allow_inf_nan=False)]

_FIELDS: dict[str, FieldCheck] = {
    "r": ("a rank, 1 or more", is_a(_Rank)),
    "lora_alpha": ("a number", is_a(_Scale)),
    "rank_pattern": ("an object of module name to rank", is_a(dict[str, _Rank] | None)),
    "alpha_pattern": ("an object of module name to number", is_a(dict[str, _Scale] | None)),
    "use_rslora": ("true or false", lambda value: value in (None, False, True)),
}


def make_config(
    ranks: Mapping[str, int], scale: float, *, base_model: str | None, task_type: str | None, fan_in_fan_out: bool
) -> dict[str, Any]:
    """A config that lets PEFT add ``scale * up(down(x))`` in the layers of ``ranks``; `layer_scale` is its inverse."""
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {"^" + name.replace(".", r"\."): own for name, own in ranks.items() if own != rank}
    return {
        "alpha_pattern": {name: _alpha(scale, own) for name, own in others.items()},
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _alpha(scale, rank),
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": others,
        "target_modules": list(ranks),
        "task_type": task_type,
        "use_dora": False,
        "use_rslora": False,
    }


def check_plain(config: Mapping[str, Any], where: str) -> None:
    """Raise `CorruptFile` unless a config is plain LoRA: a scaled low-rank sum, which an `Adapter` can represent."""
    if config.get("peft_type") != "LORA":
        raise CorruptFile(
            f"{where}: expected peft_type LORA, found {describe(config.get('peft_type'))}, which this Foreword cannot "
            "serve as an adapter; give a LoRA, or merge it into the model with PEFT."
        )
    if config.get("bias", "none") != "none":
        _refuse("bias", config, where)
    if config.get("init_lora_weights") not in _INITS:
        _refuse("init_lora_weights", config, where)
    for name in sorted(config.keys() - _ALLOWED_FIELDS):
        if config[name] not in _UNSET:
            _refuse(name, config, where)
    for name, (expected, check) in _FIELDS.items():
        if not check(config.get(name)):
            raise CorruptFile(
                f"{where}: {name} must be {expected}, found {describe(config.get(name))}; {ADAPTER_MEND}."
            )


def layer_scale(config: Mapping[str, Any], layer: str, rank: int, where: str) -> float:
    """PEFT's scaling of a layer: ``alpha / r``, or ``alpha / sqrt(r)`` with ``use_rslora``.

    Args:
        config: checked by `check_plain`.
        layer: name of the module in the Transformers model.
        rank: of its tensors; must be the rank in the config.
    """
    expected = _pattern_value("rank_pattern", layer, config, config["r"], where)
    if expected != rank:
        raise CorruptFile(f"{where}: {layer} must have rank {expected}, found factors of rank {rank}; {ADAPTER_MEND}.")
    alpha = _pattern_value("alpha_pattern", layer, config, config["lora_alpha"], where)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _refuse(name: str, config: Mapping[str, Any], where: str) -> None:
    raise CorruptFile(
        f"{where}: expected plain LoRA, found {name} = {describe(config[name])}, which cannot be served exactly; merge "
        f"the adapter into the model with PEFT, or train it again without {name}."
    )


def _pattern_value(field: str, layer: str, config: Mapping[str, Any], default: Any, where: str) -> Any:
    """The value of the first pattern that ends a layer's name behind a dot, as in PEFT's ``get_pattern_key``."""
    for pattern, value in (config.get(field) or {}).items():
        if not _PLAIN.fullmatch(pattern) or len(re.findall(r"[*+]", pattern)) > _WILDCARDS:
            raise CorruptFile(
                f"{where}: {field} must name modules, with .* or \\d+ at most {_WILDCARDS} times, found "
                f"{describe(pattern)}; write the names out."
            )
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return default


def _alpha(scale: float, rank: int) -> int | float:
    """PEFT's ``lora_alpha`` for a scale: ``scale * rank``, as a whole number if that is exact."""
    whole = round(scale * rank)
    return whole if whole / rank == scale else scale * rank
