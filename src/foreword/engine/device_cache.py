"""`DeviceCache`: prefixes and adapters that are in use, as the model needs them, each once."""

from __future__ import annotations

import threading
from hashlib import sha256
from itertools import count
from os import urandom
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn

from foreword.adapters import check_adapter
from foreword.core import Adapter, KVPrefix
from foreword.engine.protocol import Request
from foreword.openmp import release_openmp_threads


class DeviceCache:
    """Every prefix and adapter once in the model's dtype and on its device, for as long as somebody holds the original.

    Equal requests get the same object, by which attention and adapters know that they share it.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        self._model = model
        self._dtype = dtype
        self._device = device
        self._adapters: WeakKeyDictionary[Adapter, Adapter] = WeakKeyDictionary()
        self._converted: WeakKeyDictionary[KVPrefix, KVPrefix] = WeakKeyDictionary()
        self._heads: WeakKeyDictionary[KVPrefix, WeakValueDictionary[int, KVPrefix]] = WeakKeyDictionary()
        self._numbers: WeakKeyDictionary[Adapter, int] = WeakKeyDictionary()
        self._fresh = count()
        self._lock = threading.Lock()

    @torch.no_grad()
    def adapter(self, adapter: Adapter | None) -> Adapter | None:
        """An adapter ready to use. Raises ModelMismatch for one that was made for another model."""
        if adapter is None:
            return None
        with self._lock:
            known = self._adapters.get(adapter)
            if known is None:
                check_adapter(adapter, self._model, "the adapter of this request")
                known = adapter.to(dtype=self._dtype, device=self._device)
                # An entry that holds its own key would never go away, so one that needs no change is wrapped anew.
                known = Adapter(known.layers, known.scale)
                self._adapters[adapter] = known
            return known

    def soft(self, soft: Tensor | None) -> Tensor | None:
        """Soft tokens in the model's dtype and on its device."""
        return soft.to(dtype=self._dtype, device=self._device) if soft is not None else None

    def root(self, request: Request) -> bytes:
        """What the keys and values of a request's tokens depend on besides these tokens: equal for two requests only if
        tokens of one may stand for those of the other. Soft tokens are never shared."""
        if request.soft is not None:
            return urandom(32)
        prefix = self.prefix(request.prefix, request.prefix_length)
        adapter = self.adapter(request.adapter)
        parts = [prefix.digest if prefix is not None else "", str(self._number(adapter) if adapter is not None else "")]
        return sha256("/".join(parts).encode()).digest()

    def _number(self, adapter: Adapter) -> int:
        with self._lock:
            return self._numbers.setdefault(adapter, next(self._fresh))

    @torch.no_grad()
    def prefix(self, prefix: KVPrefix | None, length: int) -> KVPrefix | None:
        """The first ``length`` positions; ``None`` for none. Slices are views, and shared while in use."""
        if prefix is None or length == 0:
            return None
        with self._lock:
            whole = self._whole(prefix)
            if length == whole.length:
                return whole
            heads = self._heads.setdefault(prefix, WeakValueDictionary())
            head = heads.get(length)
            if head is None:
                head = heads[length] = whole.head(length)
            return head

    def _whole(self, prefix: KVPrefix) -> KVPrefix:
        whole = self._converted.get(prefix)
        if whole is None:
            whole = prefix.to(dtype=self._dtype, device=self._device)
            if whole is not prefix:  # an entry that holds its own key would never go away
                self._converted[prefix] = whole
                release_openmp_threads()  # what a caller's thread converted, the engine's uses
        return whole
