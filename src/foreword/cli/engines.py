"""The engines of commands: a context manager opens each of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli.options import EngineOptions, SamplingOptions, configure_threads, quiet_libraries, say
from foreword.errors import UsageError
from foreword.home import default_bank
from foreword.progress import Progress

if TYPE_CHECKING:
    from foreword.bank.bank import Bank
    from foreword.core import Task
    from foreword.engine.protocol import EngineProtocol
    from foreword.models import LanguageModel
    from foreword.text.static_prompts import StaticPrompt


@dataclass(frozen=True)
class ServerOptions(SamplingOptions):
    """The options of ``foreword serve`` that configure its engine."""

    flags: Annotated[
        list[str] | None, typer.Argument(metavar="[-- FLAGS]", help="Flags of vllm serve, for --engine vllm.")
    ] = None
    multi_task_prompt: Annotated[
        str | None, typer.Option(help="JSON rows {task_id, prompt | system}, served beside the bank.")
    ] = None
    prefix_bytes: Annotated[int, typer.Option(help="Bound of the loaded prefixes, in bytes.")] = 1 << 30
    max_model_len: Annotated[int | None, typer.Option(help="Positions a request may take.")] = None
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are answered 429.")] = 4096


ServedEngine = tuple["EngineProtocol", "Bank", dict[str, "Task"]]
"""A running engine, its bank, and static tasks by name that are served beside the bank."""


@contextmanager
def embedded(options: ServerOptions) -> Iterator[ServedEngine]:
    """PyTorch, in this process."""
    if options.flags:
        raise UsageError(f"the embedded engine takes no flags behind --, found {shlex.join(options.flags)}.")
    prompts = _read_static_prompts(options)
    lm = options.open_model()
    _check_length(options.max_model_len, lm.context)
    extra = _compute_static_tasks(lm, prompts)
    from foreword.engine.engine import Engine

    with Engine(
        lm,
        deterministic=options.deterministic,
        max_waiting=options.max_waiting,
        max_model_len=options.max_model_len,
        allow_other_weights=options.allow_other_weights,
    ) as running:
        yield running, options.open_bank(), extra


@contextmanager
def vllm(options: ServerOptions) -> Iterator[ServedEngine]:
    """vLLM, in processes of its own."""
    _check_vllm(options)
    from foreword.vllm.compat import check_version

    check_version()
    quiet_libraries()
    from foreword.models.model_info import model_info
    from foreword.vllm.engine import VllmEngine

    info = model_info(options.model, trust_remote_code=options.trust_remote_code, progress=say)
    _check_length(options.max_model_len, info.context)
    with VllmEngine(
        info,
        _absolute_bank(options.bank),
        flags=_vllm_flags(options),
        prefix_bytes=options.prefix_bytes,
        max_waiting=options.max_waiting,
        max_model_len=options.max_model_len,
        allow_other_weights=options.allow_other_weights,
    ) as running:
        yield running, options.open_bank(), {}


@contextmanager
def llamacpp(options: ServerOptions) -> Iterator[ServedEngine]:
    """llama.cpp, in this process and without PyTorch."""
    if options.flags:
        raise UsageError(f"the llama.cpp engine takes no flags behind --, found {shlex.join(options.flags)}.")
    check_llamacpp(options)
    if options.deterministic:
        raise UsageError(
            "--deterministic is of the embedded engine: llama.cpp rounds otherwise in other batches; leave it out, or "
            "serve with --engine embedded."
        )
    _check_prompts("llama.cpp", options.multi_task_prompt)
    configure_threads()
    from foreword.llamacpp.engine import LlamaCppEngine
    from foreword.llamacpp.model import gguf_model

    model = gguf_model(options.model, progress=say)
    _check_length(options.max_model_len, model.context)
    with LlamaCppEngine(
        model,
        max_waiting=options.max_waiting,
        max_model_len=options.max_model_len,
        allow_other_weights=options.allow_other_weights,
    ) as running:
        yield running, open_engine_bank("llamacpp", options.bank), {}


ENGINES: dict[str, Callable[[ServerOptions], AbstractContextManager[ServedEngine]]] = {
    "embedded": embedded,
    "vllm": vllm,
    "llamacpp": llamacpp,
}


@contextmanager
def embedded_evaluation(options: EngineOptions) -> Iterator[EngineProtocol]:
    """The embedded engine, or for an encoder-decoder the one that only evaluates."""
    lm = options.open_model()
    from foreword.engine.engine import Engine

    with Engine(lm, allow_other_weights=options.allow_other_weights) as running:
        yield running


@contextmanager
def llamacpp_evaluation(options: EngineOptions) -> Iterator[EngineProtocol]:
    with llamacpp(ServerOptions(**asdict(options))) as (running, _, _):
        yield running


EVALUATION_ENGINES: dict[str, Callable[[EngineOptions], AbstractContextManager[EngineProtocol]]] = {
    "embedded": embedded_evaluation,
    "llamacpp": llamacpp_evaluation,
}


def open_engine_bank(engine: str, root: str | None) -> Bank:
    """Open a bank, by default the usual one, for an engine."""
    from foreword.bank.bank import Bank

    return Bank.for_engine(engine, root or default_bank())


def check_llamacpp(options: EngineOptions) -> None:
    """Raise UsageError if llama.cpp is not installed, or for options that it would ignore."""
    from foreword.llamacpp.compat import check_version

    check_version()
    given = {
        "--dtype": options.dtype != "auto",
        "--device": options.device != "auto",
        "--quantize": options.quantize is not None,
        "--device-map": options.device_map is not None,
        "--trust-remote-code": options.trust_remote_code,
    }
    if wrong := [name for name, there in given.items() if there]:
        raise UsageError(f"llama.cpp runs a GGUF file as it is, on this machine's CPU; leave {wrong[0]} out.")


def vllm_command(options: ServerOptions, engine: str, host: str, port: int) -> str:
    """The command line of ``vllm serve`` for the same tasks. Raises UsageError for another engine."""
    if engine != "vllm":
        raise UsageError("--print-command prints a line for vLLM; add --engine vllm.")
    _check_vllm(options)
    from foreword.models.load import pull
    from foreword.vllm.compat import serve_args, serve_command

    name = options.model_name
    length = [] if options.max_model_len is None else ["--max-model-len", str(options.max_model_len)]
    address = ["--served-model-name", name, "--host", host, "--port", str(port)]
    folder = str(pull(name, say))
    sampling = ["--generation-config", "vllm"]
    if options.generation_config == "auto":
        defaults = options.model_defaults
        sampling = ["--override-generation-config", json.dumps(defaults)] if defaults else []
    flags = [*address, *length, *sampling, *_vllm_flags(options)]
    args = serve_args(folder, _absolute_bank(options.bank), options.prefix_bytes, flags)
    return f"VLLM_PLUGINS=foreword {shlex.join([*serve_command(), *args])}"


def _check_vllm(options: ServerOptions) -> None:
    if options.deterministic:
        raise UsageError(
            "--deterministic is of the embedded engine; vLLM has its own on GPUs, for the models and backends that it "
            "names: set VLLM_BATCH_INVARIANT=1 and leave --deterministic out."
        )
    _check_prompts("vLLM", options.multi_task_prompt)
    if options.device != "auto":
        raise UsageError("vLLM chooses its device when it is installed; leave --device out.")
    if options.device_map is not None:
        raise UsageError("vLLM spreads a model itself: leave --device-map out, and give -- --tensor-parallel-size N.")
    if options.quantize is not None:
        raise UsageError("--quantize is of the embedded engine; give vLLM's own behind --: -- --quantization METHOD.")


def _check_prompts(engine: str, file: str | None) -> None:
    if file is not None:
        raise UsageError(
            f"{engine} serves what is in a bank: run `foreword cache {file}` first, and leave --multi-task-prompt out."
        )


def _vllm_flags(options: ServerOptions) -> list[str]:
    given = ["--trust-remote-code"] if options.trust_remote_code else []
    given += ["--dtype", options.dtype] if options.dtype != "auto" else []
    return [*given, *(options.flags or ())]


def _absolute_bank(bank: str | None) -> str:
    """The URL or absolute path of the bank, for processes with another working directory."""
    root = bank or default_bank()
    return root if "://" in root else str(Path(root).expanduser().absolute())


def _check_length(limit: int | None, context: int | None) -> None:
    if limit is not None and not 2 <= limit <= (context or limit):
        raise UsageError(f"--max-model-len must be from 2 to the model's context of {context}, got {limit}.")


def _read_static_prompts(options: ServerOptions) -> list[StaticPrompt]:
    """Read the file of static prompts and check their names, before the model is loaded."""
    if options.multi_task_prompt is None:
        return []
    from foreword.text.static_prompts import read_prompts

    prompts = read_prompts(options.multi_task_prompt)
    options.check_name(*(prompt.name for prompt in prompts))
    return prompts


def _compute_static_tasks(lm: LanguageModel, prompts: list[StaticPrompt]) -> dict[str, Any]:
    from foreword.prompts.static import static_task

    tasks = {}
    with Progress("computing", len(prompts), "prompts") as progress:
        for prompt in prompts:
            tasks[prompt.name] = static_task(lm, prompt.name, prompt.kind, prompt.text)
            progress.advance()
    return tasks
