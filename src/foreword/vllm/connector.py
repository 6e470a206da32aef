"""`ForewordConnector`: prefixes of a bank in front of vLLM's requests.

In the scheduler it says how many tokens of a request need not be run; in each worker it writes their keys and values
into the request's blocks, between two steps: a prefix that has to be read first holds up no other request. Every prefix
length is exact, since vLLM goes on behind the last position that was written, not behind a whole block.
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
from foreword.vllm.prefix_load import PrefixLoad, PrefixReference, slots
from foreword.vllm.prefix_shards import PrefixShard, PrefixShards

PREFIX_BYTES = 1 << 30
logger = logging.getLogger("vllm.foreword")


@dataclass
class ForewordConnectorMetadata(compat.KVConnectorMetadata):
    """What workers have to write."""

    loads: list[PrefixLoad]


class ForewordConnector(compat.KVConnectorBase_V1, compat.SupportsHMA):
    """A key/value connector for vLLM, see ``docs/vllm.md``.

    Extra configuration: ``bank`` is where prefixes are, ``prefix_bytes`` bounds what a worker keeps of them in memory.

    Raises UsageError for a missing setting, UnsupportedModel for a model that cannot carry prefixes here.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any = None) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        compat.check_settings(vllm_config)
        compat.check_cache(vllm_config, kv_cache_config)
        extra = self._kv_transfer_config.get_from_extra_config
        place = extra("bank", None)
        if not place:
            raise UsageError(
                f"{compat.CONNECTOR} needs the place of its bank; give kv_connector_extra_config a 'bank'."
            )
        self._groups = compat.groups(kv_cache_config)
        self._loads: list[PrefixLoad] = []
        self._refused: dict[str, str] = {}
        self._injector: PrefixWriter | None = None
        if role is compat.KVConnectorRole.WORKER:
            self._injector = PrefixWriter(
                vllm_config, self._groups, Bank(place), int(extra("prefix_bytes", PREFIX_BYTES))
            )

    # In the scheduler.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """How many tokens behind ``num_computed_tokens`` a prefix brings; they come between two steps."""
        injection = PrefixReference.found_in(request.kv_transfer_params)
        if injection is None:
            return 0, False
        if reason := self._refused.get(request.request_id) or self._refusal(injection, request):
            # vLLM would run the placeholders. It is made to wait for a load instead, which then fails.
            self._refused[request.request_id] = reason
            request.skip_reading_prefix_cache = False
            return max(1, injection.length - num_computed_tokens), True
        # A last token is always run: its logits are what is asked for.
        missing = min(injection.length, request.num_tokens - 1) - num_computed_tokens
        return (missing, True) if missing > 0 else (0, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        injection = PrefixReference.found_in(request.kv_transfer_params)
        if injection is None or not num_external_tokens:
            return
        held = tuple(map(tuple, blocks.get_block_ids()))
        stop = min(injection.length, request.num_tokens - 1)
        start = stop - num_external_tokens
        refused = self._refused.get(request.request_id)
        self._loads.append(PrefixLoad(request.request_id, injection, start, stop, held, refused))

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

    def _refusal(self, injection: PrefixReference, request: Any) -> str | None:
        """Why a request must not be answered. Placeholders that are run would make the answer nonsense."""
        if not injection.trusted(self._kv_transfer_config.engine_id):
            return "it names a prefix by itself; name a task as the model"
        if injection.learned and request.skip_reading_prefix_cache:
            return "prompt_logprobs and skip_reading_prefix_cache run what stands in the places of a learned prefix"
        if injection.learned and injection.length >= request.num_prompt_tokens:
            return "nothing follows the learned prefix; send at least one token"
        return None

    # In a worker.

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert self._injector is not None
        assert isinstance(metadata, ForewordConnectorMetadata)
        self._injector.begin(metadata.loads)

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        assert self._injector is not None
        done, failed = self._injector.end()
        return compat.KVConnectorTransferResults(finished_recving=done, failed_recving=failed)

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_for_save(self) -> None: ...

    def shutdown(self) -> None:
        if self._injector is not None:
            self._injector.close()


class PrefixWriter:
    """Writes prefixes into the cache of one worker.

    Args:
        groups: names of layers that share a table of blocks, and the positions of a block.
        limit: bytes of prefixes that are kept.
    """

    def __init__(self, config: Any, groups: list[tuple[list[str], int]], bank: Bank, limit: int) -> None:
        self._config = config
        self._groups = groups
        self._bank = bank
        self._limit = limit
        self._layers: dict[str, compat.Layer] = {}
        self._rows: PrefixShards | None = None
        self._waiting: list[tuple[PrefixLoad, Future[PrefixShard]]] = []
        self._done: set[str] = set()
        self._failed: set[str] = set()

    def begin(self, loads: Iterable[PrefixLoad]) -> None:
        """Take up new loads, and write all prefixes that are in memory by now."""
        for load in loads:
            if load.refused is not None:
                self._fail(load, load.refused)
            else:
                self._waiting.append((load, self._prefixes().get(load.injection)))
        ready = [(load, rows) for load, rows in self._waiting if rows.done()]
        self._waiting = [(load, rows) for load, rows in self._waiting if not rows.done()]
        for load, rows in ready:
            try:
                self._write(load, rows.result())
                self._done.add(load.request_id)
            except Exception as error:  # it ends this request, with an error, and no other
                self._fail(load, str(error))

    def end(self) -> tuple[set[str], set[str]]:
        """Requests whose loads ended since the last call, and those of them that failed."""
        done, failed = self._done, self._failed
        self._done, self._failed = set(), set()
        return done, failed

    def close(self) -> None:
        if self._rows is not None:
            self._rows.close()

    def _prefixes(self) -> PrefixShards:
        if self._rows is None:  # the layers are not there yet when a connector is made
            names = {name for group, _ in self._groups for name in group}
            self._layers = {name: layer for name, layer in compat.layers(self._config) if name in names}
            heads = [layer.heads for layer in self._layers.values()]
            self._rows = PrefixShards(self._bank.prefix, heads, self._config.model_config.dtype, self._limit)
        return self._rows

    def _write(self, load: PrefixLoad, rows: PrefixShard) -> None:
        for (names, block_size), blocks in zip(self._groups, load.blocks, strict=True):
            positions, at = slots(blocks, block_size, load.start, load.stop)
            for layer in (self._layers[name] for name in names if name in self._layers):
                index = layer.heads.layer
                layer.write(rows.keys[index][positions], rows.values[index][positions], at)

    def _fail(self, load: PrefixLoad, reason: str) -> None:
        logger.error("request %s is not answered: %s", load.request_id, reason)
        self._done.add(load.request_id)
        self._failed.add(load.request_id)
