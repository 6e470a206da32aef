"""The first run: on 1,000 short rows of a task that the built-in model cannot do, every method beats the manual prompt
from its defaults within nine minutes."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from foreword.demo import corpus
from foreword.models import load_model
from foreword.prompts.registry import METHODS
from foreword.training.recipe import Recipe
from foreword.training.train import train
from training.small_data import write_jsonl


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.learns])
def test_beats_the_manual_prompt_from_the_defaults(method, tmp_path, record_property):
    rows, held = corpus.split(1000, 100, seed=5)
    files = {
        name: write_jsonl(tmp_path / f"{name}.jsonl", [{"text": r.message, "label": r.category} for r in some])
        for name, some in (("data", rows), ("eval", held))
    }
    lm = load_model("smollm2-135m")
    recipe = Recipe(**files, out=str(tmp_path / "run"))
    start = time.monotonic()
    result = train(lm, replace(recipe, method=method))
    record_property("seconds", time.monotonic() - start)
    minutes = (time.monotonic() - start) / 60
    print(f"{method}: {result.before['accuracy']:.3f} -> {result.metrics['accuracy']:.3f} in {minutes:.1f} minutes")
    assert result.metrics["accuracy"] > result.before["accuracy"]
    assert minutes < 9  # of two cores that do nothing else
