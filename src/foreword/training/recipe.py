"""`Recipe`: everything that a run is made from, as the command line's flags name it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from foreword.errors import UsageError

_WHAT = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Mapping: "a mapping"}
_TYPES: dict[str, tuple[type, ...]] = {
    "verbalizer": (str, Mapping),
    "length": (int,),
    "max_steps": (int,),
    "batch_size": (int,),
    "seed": (int,),
    "lr": (float, int),
    "epochs": (float, int),
    "resume": (bool,),
    "replace": (bool,),
    "trust_remote_code": (bool,),
}


@dataclass(frozen=True)
class Recipe:
    """Flags of ``foreword train``; ``None`` means the default that fits the data and the method.

    Attributes:
        data: training examples, JSONL or CSV.
        method: a name in `foreword.prompts.registry`.
        eval: examples to choose the best checkpoint on; by default a tenth of ``data`` is held out.
        template: by default the only text field, then ``\\nLabel:{mask}``.
        verbalizer: mapping, JSON text or a JSON file; by default the label's names.
        label_field: field that holds the label.
        target_field: field that holds the text to generate, where the template does not name it.
        length: virtual tokens.
        init: ``auto``, ``random``, ``vocab``, ``text``, ``labels`` or ``task:NAME``.
        init_text: the text for ``init="text"``.
        lr: peak learning rate.
        epochs, max_steps: length of the run; by default a number of steps that suits 32 to 5,000 rows.
        batch_size: examples a step.
        seed: of the held-out rows, the order of the examples and random initial values.
        resume: go on from the last checkpoint in ``out``.
        report_to: passed to the Transformers Trainer (``none``, ``tensorboard``, ``wandb``, ...).
        out: run folder; by default ``runs/METHOD-TIME``.
    """

    data: str
    method: str = "p-tuning-v2"
    eval: str | None = None
    template: str | None = None
    verbalizer: str | Mapping[str, Any] | None = None
    label_field: str = "label"
    target_field: str | None = None
    length: int | None = None
    init: str = "auto"
    init_text: str | None = None
    lr: float | None = None
    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int = 16
    seed: int = 0
    resume: bool = False
    report_to: str = "none"
    out: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            check_type(field.name, getattr(self, field.name), optional=field.default is None)
        for name in ("length", "lr", "epochs", "batch_size", "max_steps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{_flag(name)} must be above 0, got {value}.")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed must be from 0 to 4294967295, got {self.seed}.")
        if self.epochs is not None and self.max_steps is not None:
            raise UsageError("--epochs and --max-steps both set the length of the run; give one of them.")
        if self.resume and self.out is None:
            raise UsageError("--resume needs --out RUN, the run to go on with.")

    @property
    def parent(self) -> str | None:
        """The task that ``init="task:NAME"`` starts from."""
        return self.init.removeprefix("task:") if self.init.startswith("task:") else None

    def batch_of(self, rows: int) -> int:
        """Examples a step: none twice, however few there are."""
        return min(self.batch_size, rows)

    def steps(self, rows: int) -> int:
        """Optimizer steps over ``rows`` examples.

        By default ten passes, but never under 60 steps, where 32 rows would learn nothing, nor over 320, where
        5,000 rows have been seen once.
        """
        if self.max_steps is not None:
            return self.max_steps
        batch = self.batch_of(rows)
        if self.epochs is not None:
            return math.ceil(self.epochs * rows / batch)
        return min(max(math.ceil(10 * rows / batch), 60), 320)

    def to_json(self) -> dict[str, Any]:
        """What determines the result: neither where it is written nor whether it was interrupted."""
        data = {name: getattr(self, name) for name in self.keys() if name not in ("resume", "report_to", "out")}
        words = self.verbalizer
        return {**data, "verbalizer": dict(words) if isinstance(words, Mapping) else words}

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_type(name: str, value: object, *, optional: bool) -> None:
    """Raise UsageError unless the value of a recipe's key is what its flag takes."""
    expected = _TYPES.get(name, (str,))
    if value is None and optional:
        return
    # To Python, True is a whole number; to a person it is not.
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        what = " or ".join(_WHAT[kind] for kind in expected if not (kind is int and float in expected))
        raise UsageError(f"{_flag(name)} must be {what}, got {value!r}.")


class _Loader(yaml.SafeLoader):
    """YAML as its authors mean it: keys are text as spelled (a label may be called ``yes``), a key stands once, and
    ``5e-3`` is a number, which YAML 1.1 only sees with a point."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            key.tag = "tag:yaml.org,2002:str"
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A YAML recipe with flags as keys (``batch_size`` or ``batch-size``).

    Raises:
        UsageError: not YAML, or not a mapping.
    """
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader=_Loader)
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}; check the path.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"recipe {path} is not a mapping; write flags as keys, such as 'method: p-tuning-v2'.")
    return {key.replace("-", "_"): value for key, value in data.items()}
