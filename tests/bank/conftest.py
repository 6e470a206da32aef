"""Tiny prefixes and tasks for the tests of the bank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from foreword.core import Adapter, Head, KVPrefix, LayerShape, LowRank, ModelIdentity, Task

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


def build_adapter(*, ranks: tuple[int, ...] = (4, 4), scale: float = 2.0, seed: int = 0) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    layers = {
        f"model.layers.{index}.self_attn.q_proj": LowRank(
            torch.randn(rank, 16, generator=draw), torch.randn(24, rank, generator=draw)
        )
        for index, rank in enumerate(ranks)
    }
    return Adapter(layers, scale)


def build_full_task(name: str = "full", *, seed: int = 0, **fields: Any) -> Task:
    """A task with everything that a task may have."""
    draw = torch.Generator().manual_seed(seed)
    task = build_task(
        name,
        seed=seed,
        template="{soft:3}: {text} {soft:2} is",
        soft=torch.randn(5, 16, generator=draw),
        head=Head(("neg", "好", "pos"), torch.randn(3, 16, generator=draw), torch.randn(3, generator=draw)),
        adapter=build_adapter(seed=seed),
        bias={"pos": -1.5, "neg": 0.1 + 0.2, "好": -3.0},
        members=(build_prefix(seed=seed + 1), build_prefix(seed=seed + 2, length=5, dtype=torch.bfloat16)),
        combine="vote",
    )
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


@pytest.fixture
def make_adapter() -> Callable[..., Adapter]:
    return build_adapter


@pytest.fixture
def make_full_task() -> Callable[..., Task]:
    return build_full_task
