"""Real PEFT on the same tiny weights as ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from foreword.core import Batch, Front, KVPrefix, Task, soft_id
from foreword.models import LanguageModel
from interop.families import family
from tiny_models import ENCODERS

peft = pytest.importorskip("peft")

ROWS = [tuple(range(60, 69)), (100,), tuple(range(110, 131))]


@dataclass(frozen=True)
class Base:
    """A folder with the weights of a tiny family, as our model and as Transformers' own."""

    folder: Path
    lm: LanguageModel

    def fresh(self) -> Any:
        """Another copy: PEFT changes the model that it wraps."""
        auto = AutoModelForCausalLM if self.lm.causal else AutoModelForMaskedLM
        return auto.from_pretrained(self.folder, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Base]:
    """Gives the base model of a family."""
    known: dict[str, Base] = {}

    def base(name: str) -> Base:
        if name not in known:
            folder = tmp_path_factory.mktemp("bases") / name
            lm = family(name)
            lm.model.save_pretrained(folder)
            lm.tokenizer.save_pretrained(folder)
            known[name] = Base(folder, lm)
        return known[name]

    return base


@torch.no_grad()
def by_peft(model: Any, **more: Any) -> list[Tensor]:
    """Logits of every token of `ROWS`, one row at a time."""
    return [model(input_ids=torch.tensor([row]), **more).logits[0][-len(row) :] for row in ROWS]


@torch.no_grad()
def by_task(lm: LanguageModel, task: Task) -> list[Tensor]:
    """The same by Foreword; soft tokens of an encoder stand in front of the row."""
    inner = [] if task.soft is None else list(map(soft_id, range(task.soft.shape[0])))
    rows = [[*inner, *row] for row in ROWS]
    batch = Batch.from_rows(Front(task.prefix, inner_soft=task.soft, adapter=task.adapter), rows)
    found = lm.logits(batch, torch.arange(sum(map(len, rows))))
    return [part[len(inner) :] for part in found.split([len(row) for row in rows])]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def config_of(name: str) -> dict[str, str]:
    """What PEFT calls the work of a family."""
    return {"task_type": "FEATURE_EXTRACTION" if name in ENCODERS else "CAUSAL_LM"}


def random_prefix(lm: LanguageModel, length: int = 9) -> KVPrefix:
    generator = torch.Generator().manual_seed(3)

    def draw(heads: int, dim: int) -> Tensor:
        return torch.randn(heads, length, dim, generator=generator) * 0.3

    shapes = lm.identity.layers
    keys = tuple(draw(s.kv_heads, s.key_dim) for s in shapes)
    values = tuple(draw(s.kv_heads, s.value_dim) for s in shapes)
    return KVPrefix(lm.identity, keys, values, offset=length)
