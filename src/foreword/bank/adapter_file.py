"""Folders in PEFT's LoRA format, read and written as `Adapter`; the bank stores adapters in this format.

``PeftModel.from_pretrained(model, folder)`` of what `write_adapter` wrote computes what Foreword computes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.bank.adapter_config import ADAPTER_MEND, FLOAT32_MAX, check_plain, layer_scale, make_config
from foreword.bank.durable import durable_write, make_folders
from foreword.bank.json_document import parse
from foreword.bank.tensor_file import DTYPES, TensorLoader, load_tensors, open_file, read_tensors, upcast, write_tensors
from foreword.core import Adapter, LowRank
from foreword.errors import CorruptFile, UsageError

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PICKLE = "adapter_model.bin"
_ROOT = "base_model.model."
_NAME = r"[\w-]+(?:\.[\w-]+)*"
_MODULE = re.compile(_NAME, re.ASCII)
_MAX_NAME = 300
_FACTOR = re.compile(rf"{re.escape(_ROOT)}({_NAME})\.lora_([AB])\.weight", re.ASCII)


def write_adapter(
    folder: Path,
    adapter: Adapter,
    *,
    base_model: str | None = None,
    task_type: str | None = None,
    fan_in_fan_out: bool = False,
) -> None:
    """Write an adapter as PEFT's ``save_pretrained`` would, fsynced; the folder is made.

    Args:
        base_model: Hub id of the base model; may be ``None``.
        task_type: PEFT's task type, such as ``CAUSAL_LM``; ``None`` for a plain ``PeftModel``.
        fan_in_fan_out: the layers are Transformers' ``Conv1D``, as in GPT-2; PEFT corrects a wrong one with a warning.

    Raises:
        UsageError: no layers, names that are no modules, or factors that do not fit or are not finite.
        OSError: the disk is full or not writable.
    """
    if error := _factor_error(adapter.layers, adapter.scale):
        raise UsageError(f"the adapter cannot be stored: {error}; give the factors of one LoRA.")
    make_folders(folder)
    ranks = {name: int(pair.down.shape[0]) for name, pair in adapter.layers.items()}
    config = make_config(
        ranks, adapter.scale, base_model=base_model, task_type=task_type, fan_in_fan_out=fan_in_fan_out
    )
    tensors = {
        f"{_ROOT}{name}.lora_{side}.weight": factor
        for name, pair in adapter.layers.items()
        for side, factor in (("A", pair.down), ("B", pair.up))
    }
    # Other loaders of Transformers' files ask for this entry.
    write_tensors(folder / WEIGHTS, tensors, "the adapter", {"format": "pt"})
    durable_write(folder / CONFIG, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())


def read_adapter(folder: Path, load: TensorLoader = load_tensors) -> Adapter:
    """Read a LoRA folder, factors on the CPU in the stored dtype.

    `foreword.adapters.check_adapter` checks whether a model has the layers.

    Raises:
        CorruptFile: malformed, or not plain LoRA: DoRA, biases, whole layers, embeddings, another method of PEFT.
        BankError: a file is missing or cannot be opened.
    """
    with open_file(folder / CONFIG, "PEFT's configuration of an adapter") as stream:
        config = parse(stream.read(), str(folder / CONFIG))
    check_plain(config, str(folder / CONFIG))
    if (folder / _PICKLE).is_file() and not (folder / WEIGHTS).is_file():
        raise CorruptFile(
            f"{folder / _PICKLE}: expected {WEIGHTS}, found a pickle, which is never loaded here; save the adapter "
            "again with a current PEFT."
        )
    return make_adapter(config, read_tensors(folder / WEIGHTS, load), str(folder))


def make_adapter(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], where: str) -> Adapter:
    """The adapter that PEFT would make of a configuration and its tensors. Raises `CorruptFile` as `read_adapter`.

    Where layers differ in scale, the difference goes into their ``up`` factors, in float32 at least.
    """
    check_plain(config, where)
    layers = _pair_factors(tensors, where)
    scales = {name: layer_scale(config, name, int(pair.down.shape[0]), where) for name, pair in layers.items()}
    scale = max(scales.values(), key=abs)
    if any(own != scale for own in scales.values()):
        layers = {name: _scaled(pair, scales[name] / scale) for name, pair in layers.items()}
    return Adapter(layers, scale)


def _pair_factors(tensors: Mapping[str, torch.Tensor], where: str) -> dict[str, LowRank]:
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        factor = _FACTOR.fullmatch(name)
        if factor is None:
            raise CorruptFile(
                f"{where}: expected plain LoRA, {_ROOT}MODULE.lora_A.weight and .lora_B.weight, found {name}, which "
                "cannot be served exactly; merge the adapter into the model with PEFT, or train it again without "
                f"{_module_of(name)}."
            )
        sides.setdefault(factor[1], {})[factor[2]] = tensor
    if incomplete := [name for name, pair in sides.items() if len(pair) < 2]:
        raise CorruptFile(f"{where}: {incomplete[0]} needs lora_A and lora_B, found one; {ADAPTER_MEND}.")
    layers = {name: LowRank(pair["A"], pair["B"]) for name, pair in sides.items()}
    if error := _factor_error(layers, 0.0):
        raise CorruptFile(f"{where}: {error}; {ADAPTER_MEND}.")
    return layers


def _module_of(tensor: str) -> str:
    """The last name of the module that a tensor belongs to, as PEFT's configurations name modules."""
    own = ("base_layer", "weight", "bias")
    parts = [part for part in tensor.split(".") if not part.startswith("lora_") and part not in own]
    return parts[-1] if parts else tensor


def _factor_error(layers: Mapping[str, LowRank], scale: float) -> str | None:
    """A clause for an error about a scale, a module name or factors that no adapter has; ``None`` without one."""
    if not layers:
        return "it changes no layer"
    if not abs(scale) <= FLOAT32_MAX:
        return f"its scale must be a finite number, found {scale}"
    for name, pair in layers.items():
        if not _MODULE.fullmatch(name) or len(name) > _MAX_NAME:
            return f"{name!r} is not the name of a module"
        down, up = list(pair.down.shape), list(pair.up.shape)
        if not all(str(each.dtype).removeprefix("torch.") in DTYPES.values() for each in (pair.down, pair.up)):
            return f"the adapter must be floating point, {name} has {pair.down.dtype} and {pair.up.dtype}"
        if len(down) != 2 or len(up) != 2 or down[0] != up[1] or 0 in (*down, *up):
            return f"{name} must have factors [rank, in] and [out, rank], found {down} and {up}"
    return None


def _scaled(pair: LowRank, ratio: float) -> LowRank:
    # As in PEFT, which runs half-precision factors in float32; scaled in half precision they would be rounded again.
    return LowRank(upcast(pair.down), upcast(pair.up) * ratio)
