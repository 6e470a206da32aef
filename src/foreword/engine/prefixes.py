"""`ResidentPrefixes`: the parts of prefixes that are in use, as the model needs them, each once."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch

from foreword.core import KVPrefix


class ResidentPrefixes:
    """Every prefix once in the model's dtype and on its device, for as long as somebody holds the original.

    Equal requests get the same object, by which the engine's attention knows that they share a prefix.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._converted: WeakKeyDictionary[KVPrefix, KVPrefix] = WeakKeyDictionary()
        self._heads: WeakKeyDictionary[KVPrefix, WeakValueDictionary[int, KVPrefix]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    @torch.no_grad()
    def get(self, prefix: KVPrefix | None, length: int) -> KVPrefix | None:
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
        return whole
