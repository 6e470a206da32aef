"""Checkpoints of other programs with configurations of wrong types and tensors of no use: a sentence for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from foreword.bank.adapter_file import make_adapter
from foreword.errors import CorruptFile, ForewordError
from foreword.interop.peft import read_peft
from foreword.interop.ptuning import read_ptuning

CONFIG = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}


def peft(folder: Path, tensors: dict[str, torch.Tensor], **fields: Any) -> str:
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **fields}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("task_type", "modules_to_save", "num_virtual_tokens", "num_layers", "revision"),
        *("num_transformer_submodules", "base_model_name_or_path"),
    ],
)
@pytest.mark.parametrize("value", [{"a": 1}, [1], True, 1.5])
def test_fields_of_wrong_types_are_named(tmp_path: Path, name: str, value: Any):
    with pytest.raises(CorruptFile, match=f"{name} must be"):
        read_peft(peft(tmp_path, {"prompt_embeddings": torch.zeros(4, 8)}, **{name: value}))


@pytest.mark.parametrize("name", ["pre_seq_len", "architectures", "_name_or_path", "num_key_value_heads", "head_dim"])
def test_fields_of_a_ptuning_config_are_named(tmp_path: Path, name: str):
    (tmp_path / "config.json").write_text(json.dumps({name: {"a": 1}}))
    save_file({"prefix_encoder.embedding.weight": torch.zeros(4, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(CorruptFile, match=f"{name} must be"):
        read_ptuning(str(tmp_path))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1j])
def test_tensors_that_are_no_finite_numbers_are_named(tmp_path: Path, bad: complex):
    with pytest.raises(CorruptFile, match=r"prompt_embeddings of adapter_model\.safetensors holds NaN or infinity"):
        read_peft(peft(tmp_path, {"prompt_embeddings": torch.full((4, 8), bad)}))


@pytest.mark.parametrize("field", ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "peft_type"])
@pytest.mark.parametrize("value", ["8", [8], {"a": [1]}, -1.5, 10**30, {"x": "y"}])
def test_a_lora_config_of_wrong_types_is_refused(field: str, value: Any):
    factors = {"lora_A": torch.zeros(2, 4), "lora_B": torch.zeros(4, 2)}
    tensors = {f"base_model.model.a.{side}.weight": factor for side, factor in factors.items()}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    make_adapter(config, tensors, "a")
    if (field, value) in [("lora_alpha", -1.5), ("lora_alpha", 10**30)]:
        return
    with pytest.raises(ForewordError):
        make_adapter({**config, field: value}, tensors, "a")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_a_lora_of_whole_numbers_is_refused(dtype: torch.dtype):
    tensors = {
        "base_model.model.a.lora_A.weight": torch.zeros(2, 4, dtype=dtype),
        "base_model.model.a.lora_B.weight": torch.zeros(4, 2),
    }
    with pytest.raises(CorruptFile, match="the adapter must be floating point"):
        make_adapter({"peft_type": "LORA", "r": 2, "lora_alpha": 2}, tensors, "a")
