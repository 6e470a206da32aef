"""`LoRAFolders`: writes adapters as the PEFT folders that vLLM loads a LoRA from."""

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
    """Writes every adapter once, into a temporary folder that lives as long as the engine.

    Args:
        model: the base model.
        vllm_config: of the engine.

    Raises UnsupportedModel where LoRA is enabled and a batch could not hold rows without one.
    """

    def __init__(self, model: ModelInfo, vllm_config: Any) -> None:
        self._enabled = vllm_config.lora_config is not None
        self._root = TemporaryDirectory(prefix="foreword-adapters-")
        self._requests: WeakKeyDictionary[Adapter, Any] = WeakKeyDictionary()
        self._ids = count(1)
        self._lock = threading.Lock()
        self._default: Adapter | None = None
        if self._enabled and compat.needs_lora_in_every_row():
            if model.first_linear is None:
                raise UnsupportedModel(
                    f"{model.name} has no plain linear layer for an adapter that changes nothing, which vLLM's CPU "
                    "kernels need beside others; leave --enable-lora out."
                )
            self._default = _zero_adapter(*model.first_linear)

    def lora_request(self, adapter: Adapter | None) -> Any:
        """vLLM's ``LoRARequest`` for an adapter, with a name and an id of its own; ``None`` to run without.

        Raises RequestError if vLLM was started without LoRA.
        """
        if adapter is not None and not self._enabled:
            raise RequestError(
                f"this task has a LoRA of rank {adapter.rank}, and vLLM was started without; start it with "
                f"--enable-lora --max-lora-rank {max(8, adapter.rank)}, behind -- for `foreword serve`."
            )
        adapter = adapter or self._default
        if adapter is None:
            return None
        with self._lock:
            if adapter not in self._requests:
                lora_id = next(self._ids)
                folder = Path(self._root.name) / str(lora_id)
                write_adapter(folder, adapter)
                self._requests[adapter] = compat.LoRARequest(f"adapter-{lora_id}", lora_id, str(folder))
            return self._requests[adapter]

    def close(self) -> None:
        self._root.cleanup()


def _zero_adapter(name: str, shape: tuple[int, int]) -> Adapter:
    """An adapter of one layer, of zeros: it changes nothing."""
    return Adapter({name: LowRank(torch.zeros(1, shape[1]), torch.zeros(shape[0], 1))})
