"""Two processes of ``torchrun`` learn what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foreword.bank.prefix_file import read_prefix
from foreword.training.recipe import Recipe
from training.small_data import recipe

TESTS = Path(__file__).parents[2]


def losses(settings: Recipe, *launch: str) -> tuple[list[float], list[torch.Tensor]]:
    """Losses by step and the keys of the prefix, learned by real processes."""
    assert settings.out is not None
    script = Path(settings.out).with_suffix(".py")
    script.write_text(
        f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
from foreword.bank.prefix_file import write_prefix
from foreword.training.recipe import Recipe
from foreword.training.train import train
from tiny_models import tiny_model
result = train(tiny_model("llama"), Recipe(**{settings.to_json()!r}, out={settings.out!r}))
if os.environ.get("RANK", "0") == "0":
    file = Path({settings.out!r}) / "learned.safetensors"
    write_prefix(file, result.task.prefix, method="p-tuning-v2", provenance={{}})
""",
        encoding="utf-8",
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, str(script)], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    log = json.loads((Path(settings.out) / "history.json").read_text())["log"]
    return [entry["loss"] for entry in log if "loss" in entry], list(
        read_prefix(Path(settings.out) / "learned.safetensors").keys
    )


@pytest.mark.parametrize("template", ["{text}{mask}", "{text}{target:label}"], ids=["labels", "answers"])
def test_two_processes_give_the_losses_of_one(template, tmp_path):
    settings = {"template": template, "max_steps": 20, "length": 8}
    alone, prefix = losses(recipe(tmp_path, out=str(tmp_path / "one"), **settings))
    # `accelerate launch --cpu` starts one process, however many are asked for.
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    shared, again = losses(recipe(tmp_path, out=str(tmp_path / "two"), **settings), *launch)
    assert shared == pytest.approx(alone, rel=1e-3)
    for one, two in zip(prefix, again, strict=True):
        torch.testing.assert_close(two, one, atol=1e-3, rtol=0)
