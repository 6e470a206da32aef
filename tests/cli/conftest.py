"""The command line in this process, on a tiny model folder, with a home of its own."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from foreword.cli import main
from server.running_server import CHATML
from tiny_models import byte_tokenizer, tiny_model


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary model folder: a tiny random Llama with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    tiny_model("llama").model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def endless(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with so many positions that it can write for minutes, and no wish to end."""
    long = tmp_path_factory.mktemp("models") / "endless-llama"
    shutil.copytree(folder, long)
    config = json.loads((long / "config.json").read_text())
    (long / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 200_000}))
    weights = load_file(long / "model.safetensors")
    # Of what ends an answer; some other token is always more probable.
    weights["lm_head.weight"][[config["eos_token_id"], byte_tokenizer().eos_token_id]] = 0
    save_file(weights, long / "model.safetensors", metadata={"format": "pt"})
    return long


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``foreword ARGS...`` in ``tmp_path`` and gives its exit status and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOREWORD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FOREWORD_MODEL", str(folder))
    monkeypatch.delenv("FOREWORD_BANK", raising=False)

    def run(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["foreword", *map(str, args)])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Rows with a text and a label."""
    rows = [
        {"text": f"{word} {i}", "label": label}
        for i in range(12)
        for word, label in (("fine", "positive"), ("poor", "negative"))
    ]
    file = tmp_path / "reviews.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
