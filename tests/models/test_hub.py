"""A model of the Hub where the Hub is not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from huggingface_hub import constants

from cli.processes import environment
from foreword.models import load_model
from tiny_models import tiny_model

NOWHERE = "http://127.0.0.1:9"


def test_a_model_that_is_nowhere_is_said_quickly(tmp_path: Path):
    began = time.monotonic()
    more = {"HF_ENDPOINT": NOWHERE, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "foreword", "generate", "hello", "--model", "nobody/nothing"],
        env=environment(tmp_path, tmp_path / "home", **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("loading ")]
    assert line.startswith(
        f"foreword: model 'nobody/nothing' is not on this machine, and {NOWHERE} cannot be reached ("
    )
    assert done.returncode == 1
    assert time.monotonic() - began < 60


def test_a_copy_in_the_cache_is_used(tmp_path, monkeypatch):
    folder = tmp_path / "models--some--tiny" / "snapshots" / ("0" * 40)
    (tmp_path / "models--some--tiny" / "refs").mkdir(parents=True)
    (tmp_path / "models--some--tiny" / "refs" / "main").write_text("0" * 40)
    made = tiny_model("llama")
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    for name, value in (("ENDPOINT", NOWHERE), ("HF_HUB_OFFLINE", False), ("HF_HUB_CACHE", str(tmp_path))):
        monkeypatch.setattr(constants, name, value)
    said: list[str] = []
    began = time.monotonic()
    assert load_model("some/tiny", progress=said.append).name == "some/tiny"
    assert said == ["the Hub cannot be reached; some/tiny is loaded from the cache"]
    assert time.monotonic() - began < 10


def test_transformers_writes_no_bar(tmp_path, capfd):
    made = tiny_model("llama")
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    capfd.readouterr()
    load_model(str(tmp_path))
    assert capfd.readouterr().err == ""
