"""`LoRAFolders`: adapters as vLLM takes them: folders with a name and a number."""

from __future__ import annotations

import threading
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

import torch

from foreword.bank.adapter_file import write_adapter
from foreword.core import Adapter, LowRank
from foreword.errors import RequestError, UnsupportedModel
from foreword.models.model_info import ModelInfo
from foreword.vllm import compat


class LoRAFolders:
    """Writes every adapter once, in PEFT's format, into a folder that goes with the engine.

    Args:
        outline: the model.
        config: vLLM's.

    Raises UnsupportedModel where LoRA is on and rows without one could not be told apart.
    """

    def __init__(self, outline: ModelInfo, config: Any) -> None:
        self._taken = config.lora_config is not None
        self._root = TemporaryDirectory(prefix="foreword-adapters-")
        self._known: WeakKeyDictionary[Adapter, tuple[str, int, str]] = WeakKeyDictionary()
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._none: Adapter | None = None
        if self._taken and compat.mixes_up_adapters():
            if outline.first_linear is None:
                raise UnsupportedModel(
                    f"{outline.name} has no plain linear layer for an adapter that changes nothing, which vLLM's CPU "
                    "kernels need beside others; leave --enable-lora out."
                )
            self._none = _nothing(*outline.first_linear)

    def of(self, adapter: Adapter | None) -> tuple[str, int, str] | None:
        """Name, number and folder of an adapter, no two of which have the same; ``None`` to run without.

        Raises RequestError if vLLM was started without LoRA.
        """
        if adapter is not None and not self._taken:
            raise RequestError(
                f"this task has a LoRA of rank {adapter.rank}, and vLLM was started without; start it with "
                f"--enable-lora --max-lora-rank {max(8, adapter.rank)}, behind -- for `foreword serve`."
            )
        adapter = adapter or self._none
        return None if adapter is None else self._written(adapter)

    def request(self, adapter: Adapter | None) -> Any:
        """The same as vLLM's ``LoRARequest``, or ``None``."""
        written = self.of(adapter)
        return None if written is None else compat.LoRARequest(*written)

    def close(self) -> None:
        self._root.cleanup()

    def _written(self, adapter: Adapter) -> tuple[str, int, str]:
        with self._lock:
            if adapter not in self._known:
                number = next(self._numbers)
                folder = Path(self._root.name) / str(number)
                write_adapter(folder, adapter)
                self._known[adapter] = (f"adapter-{number}", number, str(folder))
            return self._known[adapter]


def _nothing(name: str, shape: tuple[int, int]) -> Adapter:
    """An adapter that changes nothing."""
    return Adapter({name: LowRank(torch.zeros(1, shape[1]), torch.zeros(shape[0], 1))})
