"""Options that mean the same in every command, and the model, the bank and the engine that they stand for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from foreword.errors import UsageError
from foreword.home import default_bank, default_model

if TYPE_CHECKING:
    from foreword.bank.bank import Bank
    from foreword.core import Task
    from foreword.engine.engine import Engine
    from foreword.engine.protocol import EngineProtocol
    from foreword.models import LanguageModel

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Hub id, folder, .gguf file or smollm2-135m.",
        envvar="FOREWORD_MODEL",
        show_default="smollm2-135m",
    ),
]
BankRoot = Annotated[
    str | None,
    typer.Option(
        "--bank", help="Folder or fsspec URL of the bank.", envvar="FOREWORD_BANK", show_default="$FOREWORD_HOME/bank"
    ),
]
Dtype = Annotated[str, typer.Option("--dtype", help="auto (the checkpoint's own), float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
OtherWeights = Annotated[
    bool, typer.Option("--allow-other-weights", help="Serve prefixes of other weights of the same shape.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Replace = Annotated[bool, typer.Option("--replace", help="Publish over a task that belongs to another model.")]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, which bank, and how the model is loaded: the options of commands that load a model."""

    model: ModelName = None
    bank: BankRoot = None
    dtype: Dtype = "auto"
    device: Device = "auto"
    trust_remote_code: RemoteCode = False

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Those among all settings of a command."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})

    @property
    def model_name(self) -> str:
        return self.model or default_model()

    def open_model(self) -> LanguageModel:
        return open_model(self.model, self.dtype, self.device, self.trust_remote_code)

    def open_bank(self) -> Bank:
        return open_bank(self.bank)

    def find_task(self, name: str | None, lm: LanguageModel) -> Task | None:
        """The task called ``name`` or ``name@version``, checked against the model; ``None`` for the base model."""
        if name is None or name == lm.name:
            return None
        task = self.open_bank().load(name)
        self.check_model(task, lm)
        return task

    def check_model(self, task: Task, lm: LanguageModel | EngineProtocol) -> None:
        """Raise ModelMismatch for a task of another model, whether or not it has a prefix that would show it."""
        task.prefix.model.check(lm.identity, f"task '{task.name}'")

    def check_name(self, *names: str) -> None:
        """Raise UsageError or PublishConflict for names that nothing can be published under."""
        from foreword.bank.bank import check_free

        for name in names:
            check_free(name, [self.model_name])


@dataclass(frozen=True)
class EngineOptions(ModelOptions):
    """The options of commands whose engine answers with tasks."""

    allow_other_weights: OtherWeights = False

    def open_engine(self, lm: LanguageModel, **limits: int | None) -> Engine:
        return open_engine(lm, allow_other_weights=self.allow_other_weights, **limits)

    def check_model(self, task: Task, lm: LanguageModel | EngineProtocol) -> None:
        label = f"task '{task.name}'"
        task.prefix.model.check(lm.identity, label, allow_other_weights=self.allow_other_weights)


def say(line: str) -> None:
    """A line of progress; stdout belongs to results."""
    print(line, file=sys.stderr, flush=True)


def emit(data: Mapping[str, Any], text: str, as_json: bool) -> None:
    """The result: one JSON object, or text for people."""
    print(json.dumps(data, ensure_ascii=False) if as_json else text, flush=True)


def open_bank(root: str | None) -> Bank:
    from foreword.bank.bank import Bank

    return Bank(root or default_bank())


def quiet_libraries() -> None:
    """Settings of the libraries underneath that must stand before they load: no chatter, and how threads wait."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    configure_threads()
    from transformers.utils import logging as chatter

    chatter.disable_progress_bar()
    chatter.set_verbosity_error()


def configure_threads() -> None:
    """How threads of the libraries underneath wait; must stand before they load."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Between small operations threads wait actively, some tens of microseconds, and then let go of the core. On two
    # free cores a step of 16 answers takes 45 ms so, and 57 if they let go at once. Where another process keeps a core
    # busy it takes 175 ms, and 72 if they let go at once: OMP_WAIT_POLICY=passive is for such machines. PyTorch's own
    # default waits thirty times as long.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def open_model(name: str | None, dtype: str, device: str, trust_remote_code: bool = False) -> LanguageModel:
    """Load the model named on the command line."""
    quiet_libraries()
    from foreword.models import load_model

    return load_model(
        name or default_model(), dtype=dtype, device=device, trust_remote_code=trust_remote_code, progress=say
    )


def open_engine(lm: LanguageModel, *, allow_other_weights: bool = False, **limits: int | None) -> Engine:
    """The embedded engine.

    Args:
        limits: see `Engine`; its own where there is none.
    """
    from foreword.engine.engine import Engine

    given = {name: limit for name, limit in limits.items() if limit is not None}
    return Engine(lm, allow_other_weights=allow_other_weights, **given)  # type: ignore[arg-type]


def read_text(source: str) -> str:
    """The text of a file, or of standard input for ``-``."""
    try:
        if source == "-":
            return sys.stdin.read()
        with open(source, encoding="utf-8-sig") as handle:
            return handle.read()
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}; check the path.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error


def exactly_one(flags: Mapping[str, str | None]) -> tuple[str, str]:
    """The one flag that was given, and its value. Raises UsageError if it is none, or more than one."""
    given = [(flag, value) for flag, value in flags.items() if value is not None]
    if len(given) != 1:
        found = ", ".join(flag for flag, _ in given) or "none"
        raise UsageError(f"give exactly one of {', '.join(flags)}; got {found}.")
    return given[0]


def typed_options(context: typer.Context) -> dict[str, Any]:
    """Parameters of the command that are on the command line, neither defaults nor from the environment."""
    return {
        name: value
        for name, value in context.params.items()
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
