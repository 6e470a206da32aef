"""`PrefixShards`: an LRU cache of prefixes, cut to the layers and key/value heads of one vLLM worker."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from foreword.core import KVPrefix
from foreword.errors import CorruptFile, ModelMismatch
from foreword.vllm.prefix_load import PrefixReference

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class HeadShard:
    """What a worker keeps of a layer: some of its key/value heads.

    Attributes:
        layer: number of the layer in the whole model.
        count: heads that this worker keeps.
        rank, ranks: which of how many workers this is; where there are more of them than heads, some share one.
        key_dim, value_dim: widths of a head.
    """

    layer: int
    count: int
    rank: int
    ranks: int
    key_dim: int
    value_dim: int

    def check(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Raise ModelMismatch for ``[heads, P, dim]`` of another model."""
        found = max(1, key.shape[0] // self.ranks), key.shape[2], value.shape[2]
        expected = self.count, self.key_dim, self.value_dim
        if found != expected:
            raise ModelMismatch(
                f"layer {self.layer} of the prefix would give {found[0]} heads of {found[1]}/{found[2]} to each of "
                f"{self.ranks} workers, the model has {expected[0]} of {expected[1]}/{expected[2]}."
            )

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This worker's part ``[P, count, dim]`` of ``[heads, P, dim]``."""
        first = self.rank * tensor.shape[0] // self.ranks
        return tensor[first : first + self.count].transpose(0, 1)


@dataclass(frozen=True, eq=False)
class PrefixShard:
    """One prefix as this worker needs it: ``[P, heads, dim]`` of its own layers and heads."""

    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for part in (self.keys, self.values) for t in part.values())


class PrefixShards:
    """Reads prefixes in a thread of its own, and keeps the ones used last.

    Args:
        read: a prefix of the bank by its source.
        heads: of this worker's layers.
        dtype: of the model.
        limit: bound of what is kept, in bytes.

    Attributes:
        reads: how often the bank was read.
    """

    def __init__(
        self, read: Callable[[str], KVPrefix], heads: Sequence[HeadShard], dtype: torch.dtype, limit: int
    ) -> None:
        self.reads = 0
        self._read = read
        self._heads = heads
        self._dtype = dtype
        self._limit = limit
        self._kept: OrderedDict[str, PrefixShard] = OrderedDict()
        self._reading: dict[str, Future[PrefixShard]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="foreword-prefixes")
        self._lock = threading.Lock()

    def get(self, injection: PrefixReference) -> Future[PrefixShard]:
        """The rows, now or later; the future holds whatever was wrong with them."""
        with self._lock:
            if (rows := self._kept.get(injection.digest)) is not None:
                self._kept.move_to_end(injection.digest)
                done: Future[PrefixShard] = Future()
                done.set_result(rows)
                return done
            if injection.digest not in self._reading:
                self._reading[injection.digest] = self._reader.submit(self._load, injection)
            return self._reading[injection.digest]

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _load(self, injection: PrefixReference) -> PrefixShard:
        try:
            self.reads += 1
            prefix = self._read(injection.source)
            if prefix.digest != injection.digest:
                raise CorruptFile(
                    f"{injection.source}: expected the prefix {injection.digest[:12]}, found {prefix.digest[:12]}; "
                    "publish it again."
                )
            rows = self._cut(prefix)
            self._keep(injection.digest, rows)
            return rows
        finally:
            with self._lock:
                del self._reading[injection.digest]

    def _keep(self, digest: str, rows: PrefixShard) -> None:
        with self._lock:
            self._kept[digest] = rows
            held = sum(each.nbytes for each in self._kept.values())
            while held > self._limit and self._kept:
                held -= self._kept.popitem(last=False)[1].nbytes

    def _cut(self, prefix: KVPrefix) -> PrefixShard:
        keys, values = {}, {}
        for heads in self._heads:
            if heads.layer >= len(prefix.keys):
                raise ModelMismatch(f"the prefix has {len(prefix.keys)} layers, the model has layer {heads.layer}.")
            key, value = prefix.keys[heads.layer], prefix.values[heads.layer]
            heads.check(key, value)
            keys[heads.layer] = heads.of(key).to(self._dtype).contiguous()
            values[heads.layer] = heads.of(value).to(self._dtype).contiguous()
        return PrefixShard(keys, values)
