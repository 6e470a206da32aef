"""vLLM over a `ServedModel`, in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from foreword.models.model_info import model_info
from served_model import ServedModel

BLOCK = 32
NUM_BLOCKS = 49
"""Of a request of 364 tokens at most, twelve: four of the longest fill the cache, and others wait or are preempted."""


@contextmanager
def vllm_engine(served: ServedModel, *flags: str) -> Iterator:
    from foreword.vllm.engine import VllmEngine

    usual = ("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "32")
    with VllmEngine(model_info(served.folder), served.bank.location, flags=[*usual, *flags]) as engine:
        yield engine
