"""Options that several commands have, and opening the model, bank and engine that they name."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from foreword.cli.completion import complete_values
from foreword.errors import UsageError
from foreword.home import default_bank, default_model
from foreword.training.setting import OUTPUT, Setting

if TYPE_CHECKING:
    from foreword.bank.bank import Bank
    from foreword.core import Task
    from foreword.engine.engine import Engine
    from foreword.engine.protocol import EngineProtocol
    from foreword.models import LanguageModel

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "sequential")
QUANTIZE = ("int8", "int4")
DEVICES = ("auto", "cpu", "cuda", "mps")
MODEL = "Model"
"""Heading of the options that say which model and bank, and how it is loaded."""

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Hub id, folder, .gguf file or smollm2-135m.",
        envvar="FOREWORD_MODEL",
        show_default="smollm2-135m",
        rich_help_panel=MODEL,
    ),
]
BankRoot = Annotated[
    str | None,
    typer.Option(
        "--bank",
        help="Folder or fsspec URL of the bank.",
        envvar="FOREWORD_BANK",
        show_default="$FOREWORD_HOME/bank",
        rich_help_panel=MODEL,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="auto (the checkpoint's own), float32, bfloat16 or float16.",
        autocompletion=complete_values(DTYPES),
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", help="auto, cpu, cuda or mps.", autocompletion=complete_values(DEVICES), rich_help_panel=MODEL
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="Spread the layers over several GPUs: auto, balanced or sequential.",
        autocompletion=complete_values(DEVICE_MAPS),
        rich_help_panel=MODEL,
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        help="Round the weights of linear layers to int8 or int4 as they are loaded (torchao).",
        autocompletion=complete_values(QUANTIZE),
        rich_help_panel=MODEL,
    ),
]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.", rich_help_panel=MODEL)
]
OtherWeights = Annotated[
    bool,
    typer.Option(
        "--allow-other-weights", help="Serve prefixes of other weights of the same shape.", rich_help_panel=MODEL
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=OUTPUT)]
Replace = Annotated[
    bool, typer.Option("--replace", help="Publish over a task that belongs to another model.", rich_help_panel=OUTPUT)
]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, which bank, and how the model is loaded: the options of commands that load a model."""

    model: ModelName = None
    bank: BankRoot = None
    dtype: Dtype = "auto"
    device: Device = "auto"
    trust_remote_code: RemoteCode = False
    quantize: Quantize = None
    device_map: DeviceMap = None

    def __post_init__(self) -> None:
        Setting("", choices=DTYPES).check("dtype", self.dtype)
        Setting("", choices=DEVICES).check("device", self.device)
        if self.quantize is not None:
            Setting("", choices=QUANTIZE).check("quantize", self.quantize)
        if self.device_map is not None:
            Setting("", choices=DEVICE_MAPS).check("device_map", self.device_map)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The values of these options among the settings of a command."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})

    @property
    def model_name(self) -> str:
        return self.model or default_model()

    def check_model_name(self) -> None:
        """Raise UnknownModel for a model that is not on this machine and cannot be on the Hub."""
        from foreword.models.model_name import check_model_name

        check_model_name(self.model_name)

    def open_model(self, *, is_trainable: bool = False) -> LanguageModel:
        """The model; ``is_trainable`` has it proved that gradients reach what is learned in front of it."""
        self.check_model_name()
        quiet_libraries()
        from foreword.progress import Progress

        with Progress(f"loading {self.model_name}"):
            from foreword.models import load_model

            return load_model(
                self.model_name,
                dtype=self.dtype,
                device=self.device,
                trust_remote_code=self.trust_remote_code,
                quantize=self.quantize,
                device_map=self.device_map,
                is_trainable=is_trainable,
                progress=say,
            )

    def open_bank(self) -> Bank:
        return open_bank(self.bank)

    def check_task(self, name: str | None) -> None:
        """Raise UnknownTask for a task that is not there, before the model is loaded; ``None`` is the base model."""
        if name is not None and name != self.model_name:
            self.open_bank().describe(name)

    def find_task(self, name: str | None, lm: LanguageModel) -> Task | None:
        """The task called ``name`` or ``name@version``, checked against the model; ``None`` for the base model."""
        if name is None or name == lm.name:
            return None
        bank = self.open_bank()
        task = bank.load(name)
        bank.record_use(task)
        self.check_model(task, lm)
        return task

    def check_model(self, task: Task, lm: LanguageModel | EngineProtocol) -> None:
        """Raise ModelMismatch for a task of another model, also if its prefix is empty."""
        task.prefix.model.check(lm.identity, f"task '{task.name}'")

    def check_name(self, *names: str) -> None:
        """Raise UsageError or PublishConflict for a name under which no task can be published."""
        from foreword.bank.bank import check_free

        for name in names:
            check_free(name, [self.model_name])


@dataclass(frozen=True)
class EngineOptions(ModelOptions):
    """The options of commands that run tasks on an engine."""

    allow_other_weights: OtherWeights = False

    def open_engine(self, lm: LanguageModel) -> Engine:
        """The embedded engine with the default limits."""
        from foreword.engine.engine import Engine

        return Engine(lm, allow_other_weights=self.allow_other_weights)

    def check_model(self, task: Task, lm: LanguageModel | EngineProtocol) -> None:
        label = f"task '{task.name}'"
        task.prefix.model.check(lm.identity, label, allow_other_weights=self.allow_other_weights)


GenerationConfig = Annotated[
    str,
    typer.Option(
        "--generation-config",
        help="auto: sample as the model's generation_config.json says where nothing else does; none: leave it.",
    ),
]


Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="The same answers alone and in any batch, bit by bit, slower; embedded engine only."
    ),
]


@dataclass(frozen=True)
class SamplingOptions(EngineOptions):
    """The options of commands whose answers are sampled."""

    generation_config: GenerationConfig = "auto"
    deterministic: Deterministic = False

    def __post_init__(self) -> None:
        if self.generation_config not in ("auto", "none"):
            raise UsageError(f"--generation-config must be auto or none, found {self.generation_config!r}.")

    def open_engine(self, lm: LanguageModel) -> Engine:
        from foreword.engine.engine import Engine

        return Engine(lm, allow_other_weights=self.allow_other_weights, deterministic=self.deterministic)

    @property
    def model_defaults(self) -> dict[str, Any]:
        """Sampling parameters of the model, once it is loaded."""
        from foreword.models.generation_config import generation_config

        return generation_config(self.model_name) if self.generation_config == "auto" else {}


def say(line: str) -> None:
    """Print a line on stderr; stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def emit(data: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print the result of a command on stdout: one JSON object, or text."""
    print(json.dumps(data, ensure_ascii=False) if as_json else text, flush=True)


def open_bank(root: str | None) -> Bank:
    configure_threads()  # tasks that are read from it bring PyTorch in
    from foreword.bank.bank import Bank

    return Bank(root or default_bank())


def quiet_libraries() -> None:
    """Silence Transformers and the Hub, and configure threads; call it before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    configure_threads()
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.set_verbosity_error()


def configure_threads() -> None:
    """Set how OpenMP threads wait; call it before torch or llama.cpp is imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Between small operations threads spin for some tens of microseconds and then yield the core. On two free cores a
    # step of 16 sequences takes 45 ms so, and 57 without spinning; where another process keeps a core busy, 175 ms and
    # 72, so OMP_WAIT_POLICY=passive is for such machines. PyTorch's default spins thirty times as long.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


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
    """The only flag with a value, and the value. Raises UsageError if no flag or several have one."""
    given = [(flag, value) for flag, value in flags.items() if value is not None]
    if len(given) != 1:
        found = ", ".join(flag for flag, _ in given) or "none"
        raise UsageError(f"give exactly one of {', '.join(flags)}; got {found}.")
    return given[0]


def typed_options(context: typer.Context) -> dict[str, Any]:
    """Parameters that were given on the command line, not by defaults or the environment."""
    return {
        name: value
        for name, value in context.params.items()
        if value is not None and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
