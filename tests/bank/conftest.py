"""Tiny prefixes and tasks for the tests of the bank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from foreword.core import KVPrefix, LayerShape, ModelIdentity, Task

IDENTITY = ModelIdentity(
    architecture="LlamaForCausalLM",
    hidden_size=16,
    vocab_size=100,
    layers=(LayerShape(2, 8, 8), LayerShape(1, 4, 6)),
    rope='{"rope_theta":10000.0}',
    tokenizer="a" * 64,
    weights="b" * 64,
)


def build_prefix(
    *,
    length: int = 3,
    dtype: torch.dtype = torch.float32,
    model: ModelIdentity = IDENTITY,
    token_ids: tuple[int, ...] | None = None,
    seed: int = 0,
) -> KVPrefix:
    generator = torch.Generator().manual_seed(seed)
    shapes = [((s.kv_heads, length, s.key_dim), (s.kv_heads, length, s.value_dim)) for s in model.layers]
    return KVPrefix(
        model,
        keys=tuple(torch.randn(key, generator=generator).to(dtype) for key, _ in shapes),
        values=tuple(torch.randn(value, generator=generator).to(dtype) for _, value in shapes),
        offset=length,
        token_ids=token_ids,
    )


def build_task(name: str = "sst2", *, seed: int = 0, **fields: Any) -> Task:
    task = Task(name=name, method="p-tuning-v2", prefix=build_prefix(seed=seed))
    return replace(task, **fields)


@pytest.fixture
def make_prefix() -> Callable[..., KVPrefix]:
    return build_prefix


@pytest.fixture
def make_task() -> Callable[..., Task]:
    return build_task


@pytest.fixture
def identity() -> ModelIdentity:
    return IDENTITY
