"""Fingerprints say "the same model" whatever it is stored or loaded as, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from foreword.core import LayerShape
from foreword.errors import ModelMismatch
from foreword.models import load_model
from foreword.models.fingerprint import tokenizer_fingerprint, weights_fingerprint
from text.small_tokenizers import TOKENIZERS
from tiny_models import byte_tokenizer, save_tiny, tiny_model


def weights(folder, **options) -> str:
    return load_model(str(folder), **options).identity.weights


def test_weights_are_the_same_in_every_load_dtype(tmp_path):
    folder = save_tiny("llama", tmp_path)
    assert len({weights(folder, dtype=dtype) for dtype in ("auto", "float32", "bfloat16", "float16")}) == 1


@pytest.mark.parametrize("size", ["20KB", "60KB"])
def test_weights_are_the_same_in_any_number_of_files(size, tmp_path):
    whole, parts = save_tiny("llama", tmp_path / "a"), save_tiny("llama", tmp_path / "b", max_shard_size=size)
    assert len(list(parts.glob("*.safetensors"))) > 2
    assert weights(whole) == weights(parts)


def test_weights_are_the_same_beside_copies_in_another_layout(tmp_path):
    """Mistral's repositories carry ``consolidated.safetensors`` too; whether it was fetched must not matter."""
    folder = save_tiny("llama", tmp_path)
    before = weights(folder)
    save_file({"layers.0.wq": torch.zeros(3)}, folder / "consolidated.safetensors")
    assert weights(folder) == before


def test_weights_are_the_same_in_a_bin_file(tmp_path):
    folder = save_tiny("llama", tmp_path)
    before = weights(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert weights(folder, dtype="bfloat16") == before


def test_one_other_tensor_is_another_model(tmp_path):
    folder = save_tiny("llama", tmp_path)
    before = weights(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"] + 0.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert weights(folder) != before


def test_names_and_shapes_count_too():
    tensor = torch.arange(6.0)
    assert weights_fingerprint([("a", tensor)]) != weights_fingerprint([("b", tensor)])
    assert weights_fingerprint([("a", tensor)]) != weights_fingerprint([("a", tensor.reshape(2, 3))])
    assert weights_fingerprint([("a", tensor), ("b", tensor)]) == weights_fingerprint([("b", tensor), ("a", tensor)])
    assert weights_fingerprint([("a", torch.empty(0))]) == weights_fingerprint([("a", torch.empty(0))])


def test_stored_in_another_dtype_with_the_same_values_is_the_same_model(tmp_path):
    folder = save_tiny("llama", tmp_path / "a")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "b")
    AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32).save_pretrained(tmp_path / "c")
    for copy in ("b", "c"):
        byte_tokenizer().save_pretrained(tmp_path / copy)
    assert weights(tmp_path / "b") == weights(tmp_path / "c") != weights(folder)


def test_tokenizers(tmp_path):
    tokenizers = [*TOKENIZERS.values(), byte_tokenizer()]
    assert len({tokenizer_fingerprint(tokenizer) for tokenizer in tokenizers}) == len(tokenizers)
    other_end = byte_tokenizer()
    other_end.eos_token = "<pad>"
    assert tokenizer_fingerprint(other_end) != tokenizer_fingerprint(byte_tokenizer())
    byte_tokenizer().save_pretrained(tmp_path)
    reloaded = type(byte_tokenizer()).from_pretrained(tmp_path)
    assert tokenizer_fingerprint(reloaded) == tokenizer_fingerprint(byte_tokenizer())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "OtherForCausalLM"}, "architecture is OtherForCausalLM, the loaded model has LlamaFor"),
        ({"hidden_size": 64}, "hidden_size is 64, the loaded model has 48"),
        ({"vocab_size": 301}, "vocab_size is 301, the loaded model has 300"),
        ({"layers": (LayerShape(2, 16, 16),)}, "layers is 1 layers of 2 x 16/16, the loaded model has 3 layers of"),
        ({"rope": '{"rope_theta": 5.0}'}, r"rope is \{\"rope_theta\": 5\.0\}, the loaded model has"),
        ({"tokenizer": "f" * 64}, "tokenizer is ffffffffffff..., the loaded model has"),
        ({"weights": "f" * 64}, "other weights of LlamaForCausalLM: fingerprint ffffffffffff, the loaded model has"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mismatch_names_field_expected_and_found(change, message):
    identity = tiny_model("llama").identity
    with pytest.raises(ModelMismatch, match=message):
        dataclasses.replace(identity, **change).check(identity, "task 'x'")


def test_other_weights_can_be_forced_and_any_lineage_in_common_will_do():
    identity = tiny_model("llama").identity
    other = dataclasses.replace(identity, weights="f" * 64, lineage=("gguf",))
    other.check(identity, "task 'x'", allow_other_weights=True)
    other.check(dataclasses.replace(identity, lineage=("elder", "gguf")), "task 'x'")
    with pytest.raises(ModelMismatch):
        dataclasses.replace(other, hidden_size=64).check(identity, "task 'x'", allow_other_weights=True)
