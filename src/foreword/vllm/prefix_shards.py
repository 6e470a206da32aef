"""`PrefixShards`: LRU cache of prefixes, sharded to the layers and key/value heads of one tensor-parallel worker."""

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
    """The key/value heads of one layer that a worker holds.

    Attributes:
        layer: index of the layer in the whole model.
        num_heads: key/value heads that this worker holds.
        rank, world_size: of the tensor-parallel group; with more workers than heads, some hold the same head.
        key_dim, value_dim: widths of a head.
    """

    layer: int
    num_heads: int
    rank: int
    world_size: int
    key_dim: int
    value_dim: int

    def check(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Raise ModelMismatch unless ``[kv_heads, P, dim]`` keys and values fit this model."""
        found = max(1, key.shape[0] // self.world_size), key.shape[2], value.shape[2]
        expected = self.num_heads, self.key_dim, self.value_dim
        if found != expected:
            raise ModelMismatch(
                f"layer {self.layer} of the prefix would give {found[0]} heads of {found[1]}/{found[2]} to each of "
                f"{self.world_size} workers, the model has {expected[0]} of {expected[1]}/{expected[2]}."
            )

    def select(self, tensor: torch.Tensor) -> torch.Tensor:
        """This worker's heads of ``[kv_heads, P, dim]``, as ``[P, num_heads, dim]``."""
        first = self.rank * tensor.shape[0] // self.world_size
        return tensor[first : first + self.num_heads].transpose(0, 1)


@dataclass(frozen=True, eq=False)
class PrefixShard:
    """Keys and values ``[P, num_heads, dim]`` of one prefix, by layer: this worker's layers and heads alone."""

    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for by_layer in (self.keys, self.values) for t in by_layer.values())


class PrefixShards:
    """Reads prefixes in a thread of its own, and evicts the least recently used ones.

    Args:
        read: reads a prefix of the bank by its source.
        head_shards: one for each of this worker's layers.
        dtype: of the model.
        max_bytes: bound of the shards that are kept in memory.
    """

    def __init__(
        self,
        read: Callable[[str], KVPrefix],
        head_shards: Sequence[HeadShard],
        dtype: torch.dtype,
        max_bytes: int,
    ) -> None:
        self._read, self._head_shards, self._dtype, self._max_bytes = read, head_shards, dtype, max_bytes
        self._cache: OrderedDict[str, PrefixShard] = OrderedDict()
        self._pending: dict[str, Future[PrefixShard]] = {}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="foreword-prefixes")
        self._lock = threading.Lock()

    def get(self, reference: PrefixReference) -> Future[PrefixShard]:
        """A future of the shard, done at once if it is in memory.

        Its exception is what the bank raises, CorruptFile if the digest is another, ModelMismatch if the shapes are.
        """
        with self._lock:
            if (shard := self._cache.get(reference.digest)) is not None:
                self._cache.move_to_end(reference.digest)
                done: Future[PrefixShard] = Future()
                done.set_result(shard)
                return done
            if reference.digest not in self._pending:
                self._pending[reference.digest] = self._executor.submit(self._load, reference)
            return self._pending[reference.digest]

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _load(self, reference: PrefixReference) -> PrefixShard:
        try:
            prefix = self._read(reference.source)
            if prefix.digest != reference.digest:
                raise CorruptFile(
                    f"{reference.source}: expected the prefix {reference.digest[:12]}, found {prefix.digest[:12]}; "
                    "publish it again."
                )
            shard = self._shard(prefix)
            self._insert(reference.digest, shard)
            return shard
        finally:
            with self._lock:
                del self._pending[reference.digest]

    def _insert(self, digest: str, shard: PrefixShard) -> None:
        with self._lock:
            self._cache[digest] = shard
            total = sum(each.nbytes for each in self._cache.values())
            while total > self._max_bytes and self._cache:
                total -= self._cache.popitem(last=False)[1].nbytes

    def _shard(self, prefix: KVPrefix) -> PrefixShard:
        keys, values = {}, {}
        for heads in self._head_shards:
            if heads.layer >= len(prefix.keys):
                raise ModelMismatch(f"the prefix has {len(prefix.keys)} layers, the model has layer {heads.layer}.")
            key, value = prefix.keys[heads.layer], prefix.values[heads.layer]
            heads.check(key, value)
            keys[heads.layer] = heads.select(key).to(self._dtype).contiguous()
            values[heads.layer] = heads.select(value).to(self._dtype).contiguous()
        return PrefixShard(keys, values)
