"""Which of vLLM's KV cache specs a prefix may be written into."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from vllm.v1 import kv_cache_interface as specs

from foreword.errors import UnsupportedModel
from foreword.vllm import compat
from on_vllm.test_parts import settings

SIZES = {"block_size": 16, "num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}


def cache(spec) -> SimpleNamespace:
    return SimpleNamespace(kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec, layer_names=["model.layers.0.attn"])])


@pytest.mark.parametrize(
    "spec",
    [
        specs.MLAAttentionSpec(**{**SIZES, "num_kv_heads": 1}),
        specs.MambaSpec(block_size=16, shapes=((2, 2),), dtypes=(torch.float32,)),
        specs.CrossAttentionSpec(**SIZES),
        specs.ChunkedLocalAttentionSpec(**SIZES, attention_chunk_size=64),
    ],
    ids=lambda spec: type(spec).__name__,
)
def test_other_states_than_keys_and_values_are_refused_by_name(spec):
    with pytest.raises(UnsupportedModel, match=type(spec).__name__):
        compat.check_kv_cache(settings(), cache(spec))


def test_keys_and_values_are_served():
    for spec in (specs.FullAttentionSpec(**SIZES), specs.SlidingWindowSpec(**SIZES, sliding_window=8)):
        compat.check_kv_cache(settings(), cache(spec))
