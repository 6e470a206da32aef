"""`DeviceCache`: the prefixes and adapters in use, once each, in the model's dtype and on its device."""

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
    """Converted copies of prefixes and adapters, kept for as long as the originals are referenced.

    Equal requests get the same object, by which attention and adapters know that they share it.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        self._model = model
        self._dtype = dtype
        self._device = device
        self._adapters: WeakKeyDictionary[Adapter, Adapter] = WeakKeyDictionary()
        self._prefixes: WeakKeyDictionary[KVPrefix, KVPrefix] = WeakKeyDictionary()
        self._slices: WeakKeyDictionary[KVPrefix, WeakValueDictionary[int, KVPrefix]] = WeakKeyDictionary()
        self._adapter_ids: WeakKeyDictionary[Adapter, int] = WeakKeyDictionary()
        self._next_adapter_id = count()
        self._lock = threading.Lock()

    @torch.no_grad()
    def prefix(self, prefix: KVPrefix | None, length: int) -> KVPrefix | None:
        """The first ``length`` positions of a prefix; ``None`` for none. Slices are views."""
        if prefix is None or length == 0:
            return None
        with self._lock:
            whole = self._converted(prefix)
            if length == whole.length:
                return whole
            slices = self._slices.setdefault(prefix, WeakValueDictionary())
            if (head := slices.get(length)) is None:
                head = slices[length] = whole.head(length)
            return head

    @torch.no_grad()
    def adapter(self, adapter: Adapter | None) -> Adapter | None:
        """An adapter. Raises ModelMismatch for one that was made for another model."""
        if adapter is None:
            return None
        with self._lock:
            converted = self._adapters.get(adapter)
            if converted is None:
                check_adapter(adapter, self._model, "the adapter of this request")
                converted = adapter.to(dtype=self._dtype, device=self._device)
                # An entry that holds its own key would never go away, so one that needs no change is wrapped anew.
                converted = Adapter(converted.layers, converted.scale)
                self._adapters[adapter] = converted
            return converted

    def soft(self, soft: Tensor | None) -> Tensor | None:
        """Soft tokens; not kept."""
        return soft.to(dtype=self._dtype, device=self._device) if soft is not None else None

    def root_hash(self, request: Request) -> bytes:
        """Hash of what the keys and values of a request's tokens depend on besides these tokens (prefix and adapter),
        and of its salt, which says who may find them.

        Requests with soft tokens get a random one, so that they never share pages.
        """
        if request.soft is not None:
            return urandom(32)
        prefix = self.prefix(request.prefix, request.prefix_length)
        adapter = self.adapter(request.adapter)
        digest = prefix.digest if prefix is not None else ""
        adapter_id = str(self._adapter_id(adapter)) if adapter is not None else ""
        return sha256(f"{digest}/{adapter_id}/{request.cache_salt}".encode(errors="surrogatepass")).digest()

    def _adapter_id(self, adapter: Adapter) -> int:
        with self._lock:
            return self._adapter_ids.setdefault(adapter, next(self._next_adapter_id))

    def _converted(self, prefix: KVPrefix) -> KVPrefix:
        converted = self._prefixes.get(prefix)
        if converted is None:
            converted = prefix.to(dtype=self._dtype, device=self._device)
            if converted is not prefix:  # an entry that holds its own key would never go away
                self._prefixes[prefix] = converted
                release_openmp_threads()  # converted by the caller's thread, used by the engine's
        return converted
