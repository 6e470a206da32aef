"""`Recipe`: everything that a run is made from, as the command line's flags name it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from foreword.errors import UsageError


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
        positive = {
            "length": self.length,
            "lr": self.lr,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
        }
        for name, value in (positive | {"max_steps": self.max_steps}).items():
            if value is not None and not value > 0:
                raise UsageError(f"--{name.replace('_', '-')} must be above 0, got {value}.")
        if self.epochs is not None and self.max_steps is not None:
            raise UsageError("--epochs and --max-steps both set the length of the run; give one of them.")
        if self.resume and self.out is None:
            raise UsageError("--resume needs --out RUN, the run to go on with.")

    def steps(self, rows: int) -> int:
        """Optimizer steps over ``rows`` examples.

        By default ten passes, but never under 60 steps, where 32 rows would learn nothing, nor over 320, where
        5,000 rows have been seen once.
        """
        if self.max_steps is not None:
            return self.max_steps
        if self.epochs is not None:
            return max(1, math.ceil(self.epochs * rows / self.batch_size))
        return min(max(math.ceil(10 * rows / self.batch_size), 60), 320)

    def to_json(self) -> dict[str, Any]:
        """What determines the result: neither where it is written nor whether it was interrupted."""
        data = asdict(self)
        for name in ("resume", "report_to", "out"):
            del data[name]
        return data

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A YAML recipe with flags as keys (``batch_size`` or ``batch-size``).

    Raises:
        UsageError: not YAML, or not a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}; check the path.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"recipe {path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"recipe {path} is not a mapping; write flags as keys, such as 'method: p-tuning-v2'.")
    return {str(key).replace("-", "_"): value for key, value in data.items()}
