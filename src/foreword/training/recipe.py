"""`Recipe`: everything that a run is made from, as the command line's flags name it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from foreword.errors import SettingError

_WHAT = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Mapping: "a mapping",
    Sequence: "a list",
}
_TYPES: dict[str, tuple[type, ...]] = {
    "verbalizer": (str, Mapping),
    "template": (str, Sequence),
    "warm_start": (Sequence,),
    "class_weights": (str, Mapping),
    "length": (int,),
    "max_steps": (int,),
    "batch_size": (int,),
    "accumulate": (int,),
    "patience": (int,),
    "members": (int,),
    "rank": (int,),
    "candidates": (int,),
    "lm_weight": (float, int),
    "seed": (int,),
    "lr": (float, int),
    "epochs": (float, int),
    "calibrate": (bool,),
    "checkpointing": (bool,),
    "projection": (bool,),
    "freeze_first": (bool,),
    "resume": (bool,),
    "replace": (bool,),
    "trust_remote_code": (bool,),
    "tasks": (str, Mapping),
    "at_once": (int,),
    "min_rows": (int,),
    "shared_init": (bool,),
    "shared_length": (int,),
    "publish_all": (bool,),
    "no_publish": (bool,),
}


@dataclass(frozen=True)
class Recipe:
    """Flags of ``foreword train``; ``None`` means the default that fits the data and the method.

    Attributes:
        data: training examples: JSONL, CSV, TSV, Parquet or ``hub:NAME:SPLIT``.
        method: a name in `foreword.prompts.registry`.
        eval: examples to choose the best checkpoint on; by default a tenth of ``data`` is held out.
        template: by default the only text field, then ``\\nLabel:{mask}``. Several are learned from together; the one
            that scores best on the evaluation rows is served.
        verbalizer: mapping, JSON text or a JSON file; by default the label's names.
        label_field: field that holds the label.
        target_field: field that holds the text to generate, where the template does not name it.
        head: ``verbalizer`` (words of a template with ``{mask}``) or ``linear`` (a layer over hidden states); by
            default the verbalizer, but a linear layer where labels are lists (a tag a word) or the model has no words.
        length: virtual tokens.
        init: ``auto``, ``random``, ``uniform``, ``vocab``, ``text``, ``labels`` or ``task:NAME``.
        init_text: the text for ``init="text"``.
        lr: peak learning rate, by default the method's; a linear head's own is changed in proportion.
        epochs, max_steps: length of the run; by default a number of steps that suits 32 to 5,000 rows.
        batch_size: examples a step.
        accumulate: parts that a step's examples are run in, one after another, with the same result in less memory.
        patience: stop after so many evaluations without a better one.
        class_weights: ``balanced`` (by how rare a label is), or a mapping, JSON text or a JSON file of label to weight.
        warm_start: recipes of further data sets, which the prompt is learned on together with its own before it goes on
            alone (multi-task learning).
        calibrate: subtract what the task says to content-free input (Zhao et al. 2021, arXiv:2102.09690).
        members: prefixes learned with different seeds and served as an ensemble.
        checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        rank, encoder, projection, freeze_first: of the methods that have them, see `foreword.prompts.registry`.
        weights, unlabeled, lm_weight: of PET, see `foreword.prompts.pet.Pet`.
        candidates: of AutoPrompt, see `foreword.prompts.trigger.AutoPrompt`.
        seed: of the held-out rows, the order of the examples and random initial values.
        resume: go on from the last checkpoint in ``out``.
        report_to: passed to the Transformers Trainer (``none``, ``tensorboard``, ``wandb``, ...).
        out: run folder; by default ``runs/METHOD-TIME``.
    """

    data: str
    method: str = "p-tuning-v2"
    eval: str | None = None
    template: str | Sequence[str] | None = None
    verbalizer: str | Mapping[str, Any] | None = None
    label_field: str = "label"
    target_field: str | None = None
    head: str | None = None
    length: int | None = None
    init: str = "auto"
    init_text: str | None = None
    lr: float | None = None
    epochs: float | None = None
    max_steps: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    patience: int | None = None
    class_weights: str | Mapping[str, Any] | None = None
    warm_start: Sequence[str] | None = None
    calibrate: bool = False
    members: int = 1
    checkpointing: bool = False
    rank: int | None = None
    encoder: str | None = None
    projection: bool | None = None
    freeze_first: bool | None = None
    weights: str | None = None
    unlabeled: str | None = None
    lm_weight: float | None = None
    candidates: int | None = None
    seed: int = 0
    resume: bool = False
    report_to: str = "none"
    out: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            check_type(field.name, getattr(self, field.name), optional=field.default is None)
        check_numbers(self, "length", "lr", "epochs", "max_steps", "patience", "members", "rank", "candidates")
        if self.epochs is not None and self.max_steps is not None:
            raise SettingError(
                "max_steps", "--epochs and --max-steps both set the length of the run; give one of them."
            )
        if isinstance(self.warm_start, str):
            raise SettingError("warm_start", f"--warm-start must be a list of recipes, got {self.warm_start!r}.")
        if self.head not in (None, "verbalizer", "linear"):
            raise SettingError("head", f"--head must be verbalizer or linear, got {self.head!r}.")

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates as given, none if they are to be guessed. Raises SettingError for one that is no text."""
        if self.template is None:
            return ()
        given = (self.template,) if isinstance(self.template, str) else tuple(self.template)
        if not given or not all(isinstance(each, str) for each in given):
            raise SettingError("template", f"--template must be text or a list of texts, got {self.template!r}.")
        return given

    @property
    def options(self) -> dict[str, Any]:
        """Options of the method that were given."""
        named = ("rank", "encoder", "projection", "freeze_first", "weights", "unlabeled", "lm_weight", "candidates")
        return {name: getattr(self, name) for name in named if getattr(self, name) is not None}

    @property
    def parent(self) -> str | None:
        """The task that ``init="task:NAME"`` starts from."""
        return self.init.removeprefix("task:") if self.init.startswith("task:") else None

    def refuse(self, *names: str, because: str = "") -> None:
        """Raise SettingError if one of these flags was given: the method does not use it, perhaps for a reason."""
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                why = f" {because}" if because else ""
                raise SettingError(
                    field.name, f"--method {self.method}{why} does not use {_flag(field.name)}; leave it out."
                )

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
        data["warm_start"] = list(self.warm_start) if self.warm_start else None
        for name in ("verbalizer", "class_weights"):
            data[name] = dict(data[name]) if isinstance(data[name], Mapping) else data[name]
        return {**data, "template": list(self.templates) if len(self.templates) > 1 else self.template}

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_numbers(recipe: Any, *names: str) -> None:
    """Raise SettingError for what no recipe may be.

    Args:
        recipe: with ``batch_size``, ``accumulate``, ``seed``, ``resume`` and ``out``, as every run has them.
        names: of further numbers that must be above 0, where they are given.
    """
    for name in (*names, "batch_size", "accumulate"):
        value = getattr(recipe, name)
        if value is not None and not 0 < value < math.inf:
            raise SettingError(name, f"{_flag(name)} must be above 0, got {value}.")
    if not 0 <= recipe.seed < 2**32:
        raise SettingError("seed", f"--seed must be from 0 to 4294967295, got {recipe.seed}.")
    if recipe.accumulate > recipe.batch_size:
        raise SettingError(
            "accumulate",
            f"--accumulate {recipe.accumulate} is more than the {recipe.batch_size} examples of a step.",
        )
    if recipe.resume and recipe.out is None:
        raise SettingError("resume", "--resume needs --out RUN, the run to go on with.")


def check_type(name: str, value: object, *, optional: bool) -> None:
    """Raise SettingError unless the value of a recipe's key is what its flag takes."""
    expected = _TYPES.get(name, (str,))
    if value is None and optional:
        return
    # To Python, True is a whole number; to a person it is not.
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        what = " or ".join(_WHAT[kind] for kind in expected if not (kind is int and float in expected))
        raise SettingError(name, f"{_flag(name)} must be {what}, got {value!r}.")
