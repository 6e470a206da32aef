"""Files that describe a larger model than they hold, or nothing that there is: refused by name before it is built."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from torch import nn

from foreword.errors import ModelError, UnsupportedModel
from foreword.models import gguf, load_model
from foreword.models.gguf_file import GgufFile
from foreword.models.pickled_tensors import read_pickled_tensors
from foreword.models.size_bound import SizeBound
from tiny_models import tiny_model

BASE = {
    "block_count": 2,
    "context_length": 512,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "rope.dimension_count": 16,
    "vocab_size": 300,
}


def write(path: Path, *, tokens: int = 300, width: int = 64, layers: int = 0, **fields: int) -> Path:
    """A Llama of 300 embeddings, without the weights of its layers."""
    writer = GGUFWriter(path, "llama")
    for name, value in {**BASE, **fields}.items():
        writer.add_uint64(f"llama.{name}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in seen] + [chr(256 + i) for i in range(256 - len(seen))]
    writer.add_token_list((alphabet + [f"<|x{i}|>" for i in range(tokens - 257)] + ["ab"])[:tokens])
    writer.add_token_types([1] * tokens)
    writer.add_token_merges(["a b"])
    writer.add_tensor("token_embd.weight", np.zeros((300, width), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(layers):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"embedding_length": 2_000_000}, "llama.embedding_length must be at most 300"),
        ({"embedding_length": 128}, "token_embd.weight must be 128 wide"),
        ({"block_count": 10**9}, "llama.block_count must be at most 512 for the tensors in it"),
        ({"feed_forward_length": 2**40}, "feed_forward_length' must be a number of at most"),
        ({"attention.head_count": 0}, "head_count 0 does not divide"),
        ({"attention.head_count_kv": 10**6}, "head_count_kv must be at most"),
        ({"vocab_size": 10**8}, "vocab_size must be at most"),
        ({"context_length": 2**62}, "context_length' must be a number of at most"),
        ({"width": 32}, "token_embd.weight must be 64 wide"),
        ({"tokens": 301}, "it has 301 tokens, and embeddings of 300"),
    ],
)
def test_a_header_that_its_tensors_do_not_bear_out_is_refused(tmp_path: Path, fields: dict[str, Any], says: str):
    with pytest.raises(UnsupportedModel, match=says):
        GgufFile.read(write(tmp_path / "m.gguf", **fields))


def test_tensors_that_are_not_in_the_file_are_not_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FOREWORD_HOME", str(tmp_path / "home"))
    with pytest.raises(UnsupportedModel, match=r"has no weights for model\.layers\.0"):
        gguf.gguf_folder(write(tmp_path / "m.gguf"), print)


def test_no_model_is_built_beyond_its_files():
    with torch.device("meta"), SizeBound(10**6, "tiny"):
        nn.Linear(1000, 1000)
        with pytest.raises(UnsupportedModel, match="tiny describes a model of more numbers than its files can fill"):
            nn.ModuleList(nn.Linear(1000, 1000) for _ in range(10**9))


def counted(tensors: int, fields: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + rest


def field(name: bytes, kind: int, rest: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + rest


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    head = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(shape))
    return head + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        counted(2**63, 0),
        counted(0, 2**63),
        counted(0, 1, struct.pack("<Q", 2**63)),
        counted(0, 1, field(b"a", 8, struct.pack("<Q", 2**62))),
        counted(0, 1, field(b"a", 77, b"")),
        counted(0, 1, field(b"a", 9, struct.pack("<IQ", 0, 2**62))),
        counted(0, 1, field(b"a", 9, struct.pack("<IQ", 8, 2**62) + bytes(64))),
        counted(0, 1, field(b"a", 9, struct.pack("<IQ", 9, 1) * 5000)),
        counted(0, 2, field(b"a", 0, b"1") * 2),
        counted(2, 0, tensor(b"a", (8,)) * 2 + bytes(999)),
        counted(1, 0, tensor(b"a", (2**32, 2**32)) + bytes(999)),
        counted(1, 0, tensor(b"a", (8,), offset=2**63) + bytes(999)),
        counted(1, 0, tensor(b"a", (8,), kind=999) + bytes(999)),
        counted(1, 0, tensor(b"a", (8,), kind=2) + bytes(999)),
        counted(1, 0, tensor(b"a", (1,) * 9) + bytes(999)),
        counted(1, 0, tensor(b"a", (0, 8)) + bytes(999)),
        counted(2, 0, tensor(b"a", (64,)) + tensor(b"b", (64,), offset=32) + bytes(999)),
        counted(1, 1, field(b"general.alignment", 4, struct.pack("<I", 0)) + tensor(b"a", (8,)) + bytes(999)),
    ],
)
def test_counts_and_places_beyond_the_file_are_refused(tmp_path: Path, data: bytes):
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(UnsupportedModel, match="cannot be read as a GGUF model"):
        GgufFile.read(tmp_path / "m.gguf")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lm = tiny_model("llama")
    lm.model.save_pretrained(tmp_path / "m")
    lm.tokenizer.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def change_config(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    return change


def write_over(name: str, data: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(data)


@pytest.mark.parametrize(
    "damage",
    [
        change_config(hidden_size=2 * 10**9),
        change_config(intermediate_size=10**8),
        change_config(num_hidden_layers=10**9),
        change_config(num_hidden_layers=8000),
        change_config(vocab_size=10**9),
        change_config(vocab_size=-5),
        change_config(num_attention_heads=0),
        change_config(hidden_size="64"),
        change_config(hidden_size=None),
        change_config(rope_parameters=[1]),
        change_config(model_type=["llama"]),
        write_over("config.json", "[" * 5000),
        write_over("config.json", '{"hidden_size": ' + "9" * 5000 + "}"),
        write_over("tokenizer.json", '{"model": {"type": "BPE"}}'),
        write_over("tokenizer.json", "[" * 5000),
        write_over("tokenizer_config.json", "[]"),
        write_over("model.safetensors", "x" * 100),
    ],
)
def test_a_damaged_folder_is_refused_in_a_sentence(folder: Path, damage: Callable[[Path], object]):
    damage(folder)
    with pytest.raises(ModelError):
        load_model(str(folder), progress=lambda line: None)


def test_pickled_weights_are_no_larger_than_their_file(tmp_path: Path):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(4, 4)}, file)
    assert read_pickled_tensors(file)["a"].shape == (4, 4)
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, file)
    with pytest.raises(ValueError, match="a repeats its numbers"):
        read_pickled_tensors(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/0", bytes(1 << 20))
    with pytest.raises(ValueError, match="it unpacks to 1048576 bytes"):
        read_pickled_tensors(file)
