"""Prefixes are converted once, shared while in use, and freed with the original."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import torch

from engine.reference import greedy_reference, learned_prefix, make_request, static_prefix, tokens_of
from engine.test_engine import manual_engine, run_until_idle
from foreword.core import KVPrefix
from foreword.engine.device_cache import DeviceCache
from tiny_models import tiny_model


def device_cache(dtype: torch.dtype) -> DeviceCache:
    return DeviceCache(tiny_model("llama").model, dtype, torch.device("cpu"))


def fresh() -> KVPrefix:
    known = static_prefix("llama", 8)
    return KVPrefix(known.model, known.keys, known.values, known.offset, known.token_ids)


def test_the_same_prefix_gives_the_same_object():
    cache = device_cache(torch.bfloat16)
    prefix = fresh()
    whole = cache.prefix(prefix, 8)
    assert whole is not None
    assert whole.keys[0].dtype == torch.bfloat16
    assert cache.prefix(prefix, 8) is whole
    assert cache.prefix(fresh(), 8) is not whole
    head = cache.prefix(prefix, 3)
    assert head is not None
    assert head is cache.prefix(prefix, 3)
    assert head.keys[0].data_ptr() == whole.keys[0].data_ptr()
    assert (head.length, head.offset) == (3, 3)


def test_nothing_is_used_of_no_prefix():
    cache = device_cache(torch.float32)
    assert cache.prefix(None, 0) is None
    assert cache.prefix(fresh(), 0) is None


def test_a_prefix_that_fits_is_not_copied():
    prefix = learned_prefix("llama", 3)
    assert device_cache(torch.float32).prefix(prefix, 3) is prefix


def test_prefixes_are_freed_with_the_original():
    for dtype in (torch.float32, torch.bfloat16):
        cache = device_cache(dtype)
        prefix = fresh()
        seen = [weakref.ref(prefix), weakref.ref(cache.prefix(prefix, 8)), weakref.ref(cache.prefix(prefix, 2))]
        del prefix
        gc.collect()
        assert [found() for found in seen] == [None] * 3


def test_a_trainable_prefix_is_served_without_its_graph():
    known = fresh()
    keys = tuple(key.clone().requires_grad_() for key in known.keys)
    found = device_cache(torch.bfloat16).prefix(KVPrefix(known.model, keys, known.values, 8), 8)
    assert found is not None
    assert not found.keys[0].requires_grad


def test_pages_of_a_prefix_are_shared_whatever_the_salt():
    """They are the bank's; those behind them are of who asked."""
    engine = manual_engine("llama")
    prefix = learned_prefix("llama", 20)
    for salt, cached in (("a", 0), ("b", 0), ("a", 32)):
        stream = engine.submit(replace(make_request(40, prefix=prefix, max_tokens=1), cache_salt=salt))
        run_until_idle(engine)
        assert (tokens_of(stream), stream.cached_tokens) == (greedy_reference("llama", stream.request), cached)
    prefix_pages = 2
    assert len(engine.cache._hash_of_page) == prefix_pages + 2 * 2
