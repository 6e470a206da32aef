"""PEFT's ``adapter_config.json``: which ones are plain LoRA, and how strongly each layer is changed."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from foreword.bank.json_document import FieldCheck, describe, is_count, is_number
from foreword.errors import CorruptFile

ADAPTER_MEND = "save it again with PEFT or restore it from a copy"
LARGEST = 3.4e38
"""Of a scale, as of any float32 number."""

# Of these PEFT's forward is that of plain LoRA whatever they say, or `layer_scale` reads them. Which layers are
# changed is told by the tensors. Any other field of whatever PEFT must be off.
_READ = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
        *("inference_mode", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
        *("bias", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
    }
)
_OFF = (None, False, [], {}, "")
# PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ are left out: PEFT takes their start away from the base model's own weights.
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
# PEFT takes regular expressions. Those with groups can run for ever on a made-up name, so only plain ones are read.
_PLAIN = re.compile(r"\^?(?:\.\*|\\d\+|\[0-9\]\+|\\\.|[\w.-])+\$?", re.ASCII)
_WILDCARDS = 2


def _is_number(value: Any) -> bool:
    return is_number(value) and abs(value) <= LARGEST


def _is_rank(value: object) -> bool:
    return is_count(value) and value != 0


def _is_ranks(value: object) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_rank, value.values())))


def _is_numbers(value: object) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_number, value.values())))


_RULES: dict[str, FieldCheck] = {
    "r": ("a rank, 1 or more", _is_rank),
    "lora_alpha": ("a number", _is_number),
    "rank_pattern": ("an object of module name to rank", _is_ranks),
    "alpha_pattern": ("an object of module name to number", _is_numbers),
    "use_rslora": ("true or false", lambda v: v in (None, False, True)),
}


def make_config(
    ranks: Mapping[str, int], scale: float, *, base_model: str | None, task_type: str | None, fan_in_fan_out: bool
) -> dict[str, Any]:
    """What PEFT must read to add ``scale * up(down(x))`` in the layers of ``ranks``; `layer_scale` is its inverse."""
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
    """Raise `CorruptFile` unless a config means what an `Adapter` can say: a scaled low-rank sum, nothing else."""
    if config.get("peft_type") != "LORA":
        raise CorruptFile(
            f"{where}: expected peft_type LORA, found {describe(config.get('peft_type'))}, which this Foreword cannot "
            "serve as an adapter; give a LoRA, or merge it into the model with PEFT."
        )
    if config.get("bias", "none") != "none":
        _refuse("bias", config, where)
    if config.get("init_lora_weights") not in _STARTS:
        _refuse("init_lora_weights", config, where)
    for name in sorted(config.keys() - _READ):
        if config[name] not in _OFF:
            _refuse(name, config, where)
    for name, (expected, check) in _RULES.items():
        if not check(config.get(name)):
            raise CorruptFile(
                f"{where}: {name} must be {expected}, found {describe(config.get(name))}; {ADAPTER_MEND}."
            )


def layer_scale(config: Mapping[str, Any], layer: str, rank: int, where: str) -> float:
    """What PEFT multiplies the change of a layer with: ``alpha / r``, or ``alpha / sqrt(r)`` with ``use_rslora``.

    Args:
        config: one that `check_plain` let pass.
        layer: name of the module in the Transformers model.
        rank: of its tensors, which must be the rank that the config says.
    """
    expected = _looked_up("rank_pattern", layer, config, config["r"], where)
    if expected != rank:
        raise CorruptFile(f"{where}: {layer} must have rank {expected}, found factors of rank {rank}; {ADAPTER_MEND}.")
    alpha = _looked_up("alpha_pattern", layer, config, config["lora_alpha"], where)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _refuse(name: str, config: Mapping[str, Any], where: str) -> None:
    raise CorruptFile(
        f"{where}: expected plain LoRA, found {name} = {describe(config[name])}, which cannot be served exactly; merge "
        f"the adapter into the model with PEFT, or train it again without {name}."
    )


def _looked_up(field: str, layer: str, config: Mapping[str, Any], default: Any, where: str) -> Any:
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
    """The number that PEFT divides by the rank to get the scale: whole if that is exact, as people write it."""
    whole = round(scale * rank)
    return whole if whole / rank == scale else scale * rank
