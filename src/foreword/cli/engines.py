"""The engines that commands can run, each opened by a function of its own."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.cli import options
from foreword.errors import UsageError
from foreword.home import default_bank, default_model
from foreword.progress import Progress

if TYPE_CHECKING:
    from foreword.bank.bank import Bank
    from foreword.core import Task
    from foreword.engine.protocol import EngineProtocol
    from foreword.models import LanguageModel
    from foreword.text.prompt_rows import StaticPrompt


@dataclass(frozen=True)
class Asked:
    """What was typed of the engine and its model."""

    model: str | None
    bank: str | None
    dtype: str
    device: str
    trust_remote_code: bool
    allow_other_weights: bool
    multi_task_prompt: str | None = None
    prefix_bytes: int = 1 << 30
    max_model_len: int | None = None
    max_waiting: int = 4096
    flags: tuple[str, ...] = ()


Served = tuple["EngineProtocol", "Bank", dict[str, "Task"]]
"""An engine that can answer, the bank as it reads it, and the tasks that live as long as it."""


@contextmanager
def embedded(asked: Asked) -> Iterator[Served]:
    """PyTorch, in this process."""
    if asked.flags:
        raise UsageError(f"the embedded engine takes no flags behind --, found {shlex.join(asked.flags)}.")
    prompts = _prompts(asked.multi_task_prompt, asked.model)
    lm = options.open_model(asked.model, asked.dtype, asked.device, asked.trust_remote_code)
    _check_length(asked.max_model_len, lm.context)
    extra = _extra_tasks(lm, prompts)
    limits = {"max_model_len": asked.max_model_len, "max_waiting": asked.max_waiting}
    with options.open_engine(lm, allow_other_weights=asked.allow_other_weights, **limits) as running:
        yield running, options.open_bank(asked.bank), extra


@contextmanager
def vllm(asked: Asked) -> Iterator[Served]:
    """vLLM, in processes of its own."""
    _check_vllm(asked)
    from foreword.vllm.compat import check_version

    check_version()
    options.quiet_libraries()
    from foreword.models.model_info import model_info
    from foreword.vllm.engine import VllmEngine

    described = model_info(asked.model, trust_remote_code=asked.trust_remote_code, progress=options.say)
    _check_length(asked.max_model_len, described.context)
    with VllmEngine(
        described,
        _place(asked.bank),
        flags=_flags(asked),
        prefix_bytes=asked.prefix_bytes,
        max_waiting=asked.max_waiting,
        max_model_len=asked.max_model_len,
        allow_other_weights=asked.allow_other_weights,
    ) as running:
        yield running, options.open_bank(asked.bank), {}


@contextmanager
def llamacpp(asked: Asked) -> Iterator[Served]:
    """llama.cpp, in this process and without PyTorch."""
    if asked.flags:
        raise UsageError(f"the llama.cpp engine takes no flags behind --, found {shlex.join(asked.flags)}.")
    check_llamacpp(asked.dtype, asked.device, asked.trust_remote_code)
    _check_prompts("llama.cpp", asked.multi_task_prompt)
    options.settle_threads()
    from foreword.llamacpp.engine import LlamaCppEngine
    from foreword.llamacpp.model import gguf_model

    model = gguf_model(asked.model, progress=options.say)
    _check_length(asked.max_model_len, model.context)
    with LlamaCppEngine(
        model,
        max_waiting=asked.max_waiting,
        max_model_len=asked.max_model_len,
        allow_other_weights=asked.allow_other_weights,
    ) as running:
        yield running, bank_of("llamacpp", asked.bank), {}


ENGINES: dict[str, Callable[[Asked], AbstractContextManager[Served]]] = {
    "embedded": embedded,
    "vllm": vllm,
    "llamacpp": llamacpp,
}


@contextmanager
def evaluating_embedded(asked: Asked) -> Iterator[EngineProtocol]:
    """PyTorch, also for what nothing serves."""
    lm = options.open_model(asked.model, asked.dtype, asked.device, asked.trust_remote_code)
    from foreword.engine.encoder_decoder import evaluation_engine

    with evaluation_engine(lm, allow_other_weights=asked.allow_other_weights) as running:
        yield running


@contextmanager
def evaluating_llamacpp(asked: Asked) -> Iterator[EngineProtocol]:
    with llamacpp(asked) as (running, _, _):
        yield running


EVALUATORS: dict[str, Callable[[Asked], AbstractContextManager[EngineProtocol]]] = {
    "embedded": evaluating_embedded,
    "llamacpp": evaluating_llamacpp,
}


def bank_of(engine: str, root: str | None) -> Bank:
    """A bank as an engine reads it."""
    if engine != "llamacpp":
        return options.open_bank(root)
    from foreword.bank.arrays import load_arrays
    from foreword.bank.bank import Bank

    return Bank(root or default_bank(), load=load_arrays)


def check_llamacpp(dtype: str, device: str, trust_remote_code: bool) -> None:
    """Raise UsageError unless llama.cpp is here, and nothing is asked of it that it would not do."""
    from foreword.llamacpp.compat import check_version

    check_version()
    given = {"--dtype": dtype != "auto", "--device": device != "auto", "--trust-remote-code": trust_remote_code}
    if wrong := [name for name, there in given.items() if there]:
        raise UsageError(f"llama.cpp runs a GGUF file as it is, on this machine's CPU; leave {wrong[0]} out.")


def vllm_command(asked: Asked, engine: str, host: str, port: int) -> str:
    """The line that serves the same tasks with vLLM's own server. Raises UsageError for another engine."""
    if engine != "vllm":
        raise UsageError("--print-command prints a line for vLLM; add --engine vllm.")
    _check_vllm(asked)
    from foreword.models.load import pull
    from foreword.vllm.compat import arguments, program

    name = asked.model or default_model()
    length = [] if asked.max_model_len is None else ["--max-model-len", str(asked.max_model_len)]
    address = ["--served-model-name", name, "--host", host, "--port", str(port)]
    flags = [*address, *length, *_flags(asked)]
    line = arguments(str(pull(name, options.say)), _place(asked.bank), asked.prefix_bytes, flags)
    return f"VLLM_PLUGINS=foreword {shlex.join([*program(), *line])}"


def _check_vllm(asked: Asked) -> None:
    _check_prompts("vLLM", asked.multi_task_prompt)
    if asked.device != "auto":
        raise UsageError("vLLM chooses its device when it is installed; leave --device out.")


def _check_prompts(engine: str, file: str | None) -> None:
    if file is not None:
        raise UsageError(
            f"{engine} serves what is in a bank: run `foreword cache {file}` first, and leave --multi-task-prompt out."
        )


def _flags(asked: Asked) -> list[str]:
    given = ["--trust-remote-code"] if asked.trust_remote_code else []
    given += ["--dtype", asked.dtype] if asked.dtype != "auto" else []
    return [*given, *asked.flags]


def _place(bank: str | None) -> str:
    """The bank as processes that start in another folder find it."""
    place = bank or default_bank()
    return place if "://" in place else str(Path(place).expanduser().absolute())


def _check_length(asked: int | None, context: int | None) -> None:
    if asked is not None and not 2 <= asked <= (context or asked):
        raise UsageError(f"--max-model-len must be from 2 to the model's context of {context}, got {asked}.")


def _prompts(file: str | None, model: str | None) -> list[StaticPrompt]:
    """The rows of a file of static prompts, their names checked before the model is loaded."""
    if file is None:
        return []
    from foreword.bank.bank import check_free
    from foreword.text.prompt_rows import read_prompts

    prompts = read_prompts(file)
    for prompt in prompts:
        check_free(prompt.name, [model or default_model()])
    return prompts


def _extra_tasks(lm: LanguageModel, prompts: list[StaticPrompt]) -> dict[str, Any]:
    from foreword.prompts.static import static_task

    tasks = {}
    with Progress("computing", len(prompts), "prompts") as progress:
        for prompt in prompts:
            tasks[prompt.name] = static_task(lm, prompt.name, prompt.kind, prompt.text)
            progress.advance()
    return tasks
