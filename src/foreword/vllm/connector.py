"""`ForewordConnector`: a vLLM KV connector that loads prefixes of a bank in front of requests.

In the scheduler it says how many tokens of a request need not be run. In each worker it writes their keys and values
into the request's blocks between two steps; while a prefix is read, only the requests behind it wait. Every prefix
length is exact, since vLLM continues behind the last position that was written, not behind a whole block.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from foreword.bank.bank import Bank
from foreword.errors import UsageError
from foreword.vllm import compat
from foreword.vllm.prefix_load import PrefixLoad, PrefixReference, slot_mapping
from foreword.vllm.prefix_shards import PrefixShard, PrefixShards

PREFIX_BYTES = 1 << 30
logger = logging.getLogger("vllm.foreword")


@dataclass
class ForewordConnectorMetadata(compat.KVConnectorMetadata):
    """The loads that the scheduler hands to the workers before a step."""

    loads: list[PrefixLoad]


class ForewordConnector(compat.KVConnectorBase_V1, compat.SupportsHMA):
    """vLLM's ``KVConnectorBase_V1`` over a bank; see ``docs/vllm.md``. Its methods are vLLM's hooks.

    ``kv_connector_extra_config``: ``bank`` is the place of the bank, ``prefix_bytes`` bounds the prefixes that a worker
    keeps in memory.

    Raises UsageError for a missing setting, UnsupportedModel for a model that cannot carry prefixes here.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any = None) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        compat.check_config(vllm_config)
        compat.check_kv_cache(vllm_config, kv_cache_config)
        get_extra = self._kv_transfer_config.get_from_extra_config
        bank = get_extra("bank", None)
        if not bank:
            raise UsageError(
                f"{compat.CONNECTOR} needs the place of its bank; give kv_connector_extra_config a 'bank'."
            )
        self._loads: list[PrefixLoad] = []
        self._refused: dict[str, str] = {}  # reasons by request id
        self._writer: PrefixWriter | None = None
        if role is compat.KVConnectorRole.WORKER:
            groups = compat.kv_cache_groups(kv_cache_config)
            self._writer = PrefixWriter(vllm_config, groups, Bank(bank), int(get_extra("prefix_bytes", PREFIX_BYTES)))

    # In the scheduler.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Tokens behind ``num_computed_tokens`` that a prefix brings, and whether they are loaded between two steps."""
        reference = PrefixReference.from_params(request.kv_transfer_params)
        if reference is None:
            return 0, False
        if reason := self._refused.get(request.request_id) or self._refusal(reference, request):
            # vLLM would run the placeholders. It is made to wait for a load instead, which then fails.
            self._refused[request.request_id] = reason
            request.skip_reading_prefix_cache = False
            return max(1, reference.length - num_computed_tokens), True
        # The last token is always run: its logits give the next one.
        missing = min(reference.length, request.num_tokens - 1) - num_computed_tokens
        return (missing, True) if missing > 0 else (0, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        reference = PrefixReference.from_params(request.kv_transfer_params)
        if reference is None or not num_external_tokens:
            return
        block_ids = tuple(map(tuple, blocks.get_block_ids()))
        stop = min(reference.length, request.num_tokens - 1)
        start = stop - num_external_tokens
        error = self._refused.get(request.request_id)
        self._loads.append(PrefixLoad(request.request_id, reference, start, stop, block_ids, error))

    def build_connector_meta(self, scheduler_output: Any) -> ForewordConnectorMetadata:
        loads, self._loads = self._loads, []
        return ForewordConnectorMetadata(loads)

    def request_finished(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        self._refused.pop(request.request_id, None)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, block_ids)

    def _refusal(self, reference: PrefixReference, request: Any) -> str | None:
        """Why a request must not be answered: placeholders that are run would make the answer nonsense."""
        if not reference.is_signed(self._kv_transfer_config.engine_id):
            return "it names a prefix by itself; name a task as the model"
        if reference.learned and request.skip_reading_prefix_cache:
            return "prompt_logprobs and skip_reading_prefix_cache run what stands in the places of a learned prefix"
        if reference.learned and reference.length >= request.num_prompt_tokens:
            return "nothing follows the learned prefix; send at least one token"
        return None

    # In a worker.

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert self._writer is not None
        assert isinstance(metadata, ForewordConnectorMetadata)
        self._writer.start_loads(metadata.loads)

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        assert self._writer is not None
        finished, failed = self._writer.get_finished()
        return compat.KVConnectorTransferResults(finished_recving=finished, failed_recving=failed)

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_for_save(self) -> None: ...

    def shutdown(self) -> None:
        if self._writer is not None:
            self._writer.close()


class PrefixWriter:
    """Writes prefixes into the paged cache of one worker.

    Args:
        vllm_config: of the worker.
        groups: of layers that share a block table: their names, and the positions in a block.
        bank: where prefixes are read.
        max_bytes: bound of the prefixes that are kept in memory.
    """

    def __init__(self, vllm_config: Any, groups: list[tuple[list[str], int]], bank: Bank, max_bytes: int) -> None:
        self._config = vllm_config
        self._groups = groups
        self._bank = bank
        self._max_bytes = max_bytes
        self._layers: dict[str, compat.AttentionLayer] = {}
        self._shards: PrefixShards | None = None
        self._pending: list[tuple[PrefixLoad, Future[PrefixShard]]] = []
        self._finished: set[str] = set()
        self._failed: set[str] = set()

    def start_loads(self, loads: Iterable[PrefixLoad]) -> None:
        """Accept new loads, and write every pending prefix that is in memory by now."""
        for load in loads:
            if load.error is not None:
                self._fail(load, load.error)
            else:
                self._pending.append((load, self._prefix_shards().get(load.reference)))
        ready = [(load, shard) for load, shard in self._pending if shard.done()]
        self._pending = [(load, shard) for load, shard in self._pending if not shard.done()]
        for load, shard in ready:
            try:
                self._write(load, shard.result())
                self._finished.add(load.request_id)
            except Exception as error:  # it ends this request, with an error, and no other
                self._fail(load, str(error))

    def get_finished(self) -> tuple[set[str], set[str]]:
        """Ids of the requests whose loads ended since the last call, and of those among them that failed."""
        finished, failed = self._finished, self._failed
        self._finished, self._failed = set(), set()
        return finished, failed

    def close(self) -> None:
        if self._shards is not None:
            self._shards.close()

    def _prefix_shards(self) -> PrefixShards:
        if self._shards is None:  # the layers are not there yet when a connector is made
            names = {name for group, _ in self._groups for name in group}
            self._layers = {name: layer for name, layer in compat.attention_layers(self._config) if name in names}
            heads = [layer.heads for layer in self._layers.values()]
            self._shards = PrefixShards(self._bank.prefix, heads, self._config.model_config.dtype, self._max_bytes)
        return self._shards

    def _write(self, load: PrefixLoad, shard: PrefixShard) -> None:
        for (names, block_size), block_ids in zip(self._groups, load.block_ids, strict=True):
            positions, slots = slot_mapping(block_ids, block_size, load.start, load.stop)
            for layer in (self._layers[name] for name in names if name in self._layers):
                index = layer.heads.layer
                layer.write(shard.keys[index][positions], shard.values[index][positions], slots)

    def _fail(self, load: PrefixLoad, reason: str) -> None:
        logger.error("request %s is not answered: %s", load.request_id, reason)
        self._finished.add(load.request_id)
        self._failed.add(load.request_id)
