"""`AdapterFolders`: adapters as folders, which is how vLLM takes them."""

from __future__ import annotations

import threading
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from weakref import WeakKeyDictionary

from foreword.bank.adapter_file import write_adapter
from foreword.core import Adapter


class AdapterFolders:
    """Writes every adapter once, in PEFT's format, into a folder that goes with the engine."""

    def __init__(self) -> None:
        self._root = TemporaryDirectory(prefix="foreword-adapters-")
        self._known: WeakKeyDictionary[Adapter, tuple[str, int, str]] = WeakKeyDictionary()
        self._numbers = count(1)
        self._lock = threading.Lock()

    def of(self, adapter: Adapter) -> tuple[str, int, str]:
        """Name, number and folder of an adapter; no two adapters have the same."""
        with self._lock:
            if adapter not in self._known:
                number = next(self._numbers)
                folder = Path(self._root.name) / str(number)
                write_adapter(folder, adapter)
                self._known[adapter] = (f"adapter-{number}", number, str(folder))
            return self._known[adapter]

    def close(self) -> None:
        self._root.cleanup()
