"""A step whose examples are many tokens runs in several passes, and learns what one pass would teach."""

from __future__ import annotations

import pytest
import torch

from foreword.training.loop import trainer
from foreword.training.modules.prompt_module import PromptModule
from foreword.training.train import train
from tiny_models import tiny_model
from training.small_data import recipe


@pytest.mark.parametrize("method", ["p-tuning-v2", "prompt-tuning"])
def test_passes_add_up_to_the_step(method, tmp_path, monkeypatch):
    counts: list[int] = []
    forward = PromptModule.forward

    def counted(self, examples, normalizer):
        counts.append(len(examples))
        return forward(self, examples, normalizer)

    monkeypatch.setattr(PromptModule, "forward", counted)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    changes = {"method": method, "max_steps": 6, "batch_size": 12, "length": 4}
    whole = train(tiny_model("llama"), recipe(tmp_path / "whole", **changes)).task
    assert counts == [12] * 6
    counts.clear()
    monkeypatch.setattr(trainer, "MAX_PASS_TOKENS", 20)
    parts = train(tiny_model("llama"), recipe(tmp_path / "parts", **changes)).task
    assert len(counts) > 12
    assert sum(counts) == 12 * 6
    for one, other in zip(
        (*whole.prefix.keys, *whole.prefix.values), (*parts.prefix.keys, *parts.prefix.values), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
