"""`Recipe`: the hyper-parameters and files of a run, named as the flags of the command line."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Annotated, Any

from foreword.errors import SettingError
from foreword.prompts.registry import METHODS
from foreword.text.delimited import Layout
from foreword.text.long_rows import LongRows
from foreword.text.memory import Tabular
from foreword.text.row import Row
from foreword.text.rows import source_name
from foreword.training.setting import DATA, METHOD, OPTIMISATION, OUTPUT, Setting, check_settings, flag_of, settings_of
from foreword.training.tracker import PACKAGES, check_tracker

# Fields that the recipes of several commands have in common.
Accumulate = Annotated[int, Setting("Parts that a step is run in, for less memory.", above=0, group=OPTIMISATION)]
Checkpointing = Annotated[bool, Setting("Recompute activations, for less memory still.", group=OPTIMISATION)]
Resume = Annotated[bool, Setting("Go on with the run in --out.", group=OUTPUT)]
ReportTo = Annotated[
    str,
    Setting(
        "Tracker: none, tensorboard, wandb, mlflow or another of the Trainer's.",
        suggest=("none", *PACKAGES),
        group=OUTPUT,
    ),
]
Out = Annotated[str | None, Setting("Run folder.", default="runs/NAME-TIME", group=OUTPUT)]
SEEDS = 2**32
# Settings that came after the first files were written, which say nothing of one that is not set: what was learned then
# is written as it was, and a run from then goes on.
_LATER = frozenset(("columns", "delimiter", "long_rows", "max_length", "learn_turns", "problem_type", "head_bias"))
INITS = ("auto", "random", "uniform", "vocab", "text", "labels")
"""Values of ``init`` beside ``task:NAME``."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyper-parameters of a run, as ``foreword train`` takes them; ``None`` means the default that fits the data and
    the method.

    >>> rows = [{"text": "a fine film", "label": "good"}, {"text": "dull and long", "label": "bad"}]
    >>> recipe = foreword.Recipe(data=rows, template="{text}\\nMood:{mask}", lr=0.01)
    >>> recipe.method, recipe.batch_size
    ('p-tuning-v2', 16)

    Every field is also a flag of the commands that learn and a key of YAML recipes; its `Setting` says what it is for.
    """

    data: Annotated[
        str | list[Any] | Tabular, Setting("Training examples: JSON, CSV, Parquet or hub:NAME:SPLIT.", group=DATA)
    ]
    """A file or data set by its name, or rows in memory: a list of dicts, a `datasets.Dataset` or a DataFrame."""
    method: Annotated[
        str,
        Setting(
            "p-tuning-v2, prefix-tuning, p-tuning, prompt-tuning, pet, autoprompt, lora, lora-hybrid or manual.",
            suggest=METHODS,
            group=METHOD,
        ),
    ] = "p-tuning-v2"
    """A name in `foreword.prompts.registry`."""
    eval: Annotated[
        str | list[Any] | Tabular | None,
        Setting("Evaluation examples.", default="a tenth of --data", group=DATA),
    ] = None
    """The best checkpoint is chosen on them."""
    template: Annotated[
        str | Sequence[str] | None,
        Setting(
            "How an example becomes text; may be given several times.",
            default="{the text field}\\nLabel:{mask}",
            group=DATA,
        ),
    ] = None
    """Several are learned from together; the one that scores best on the evaluation rows is served."""
    verbalizer: Annotated[
        str | Mapping[str, Any] | None,
        Setting("Words of every label: JSON or a file.", default="the labels' names", group=DATA),
    ] = None
    label_field: Annotated[str, Setting("Field that holds the label.", group=DATA)] = "label"
    target_field: Annotated[str | None, Setting("Field that holds the text to generate.", group=DATA)] = None
    """Needed only where the template does not name it."""
    columns: Annotated[
        str | list[str] | None, Setting("Names of the columns of a CSV or TSV file without a header.", group=DATA)
    ] = None
    """Such as ``text,label``."""
    delimiter: Annotated[
        str | None, Setting("Character between the cells of a CSV file.", default="found in its header", group=DATA)
    ] = None
    long_rows: Annotated[
        str | None, Setting("Rows that are too long: refuse, skip or cut FIELD.", default="refuse", group=DATA)
    ] = None
    """``cut`` takes away the field's end, so that the rest of the template and the answer remain."""
    max_length: Annotated[
        int | None,
        Setting("Tokens of an example with its answer, at most.", default="the context", above=0, group=DATA),
    ] = None
    """Virtual tokens are not counted."""
    head: Annotated[
        str | None,
        Setting(
            "verbalizer or linear.",
            default="verbalizer; linear for tags, several labels, numbers and sentence encoders",
            choices=("verbalizer", "linear"),
            group=METHOD,
        ),
    ] = None
    """Words of a template with ``{mask}``, or a linear layer over hidden states. The default is the linear layer where
    labels are lists (a tag a word, or several labels of a text) or numbers to learn, or the model has no words."""
    problem_type: Annotated[
        str | None,
        Setting(
            "What the labels are: one, several or a number for a text, or tags of its words.",
            default="as they look",
            choices=("single_label_classification", "multi_label_classification", "regression", "token_classification"),
            group=DATA,
        ),
    ] = None
    """The first three by the names of Transformers' configurations."""
    head_bias: Annotated[
        bool | None,
        Setting(
            "Whether a linear head has a bias; Transformers' classifiers of causal models have none.",
            default="--head-bias",
            flag="--head-bias/--no-head-bias",
            group=METHOD,
        ),
    ] = None
    """Without one, ``export peft`` can give the head of a causal model over whole texts to PEFT."""
    learn_turns: Annotated[
        str, Setting("Of conversations: the assistant's turns to learn.", choices=("all", "last"), group=DATA)
    ] = "all"
    length: Annotated[int | None, Setting("Virtual tokens.", default="the method's", above=0, group=METHOD)] = None
    init: Annotated[str, Setting("auto, random, uniform, vocab, text, labels or task:NAME.", group=METHOD)] = "auto"
    init_text: Annotated[str | None, Setting("Text to start from.", group=METHOD)] = None
    """For ``init="text"``."""
    warm_start: Annotated[
        Sequence[str] | None,
        Setting("Recipe of a further data set to learn with first; may be repeated.", group=METHOD),
    ] = None
    """The prompt is learned on them together with its own data before it goes on alone (multi-task learning)."""
    lr: Annotated[float | None, Setting("Peak learning rate.", default="the method's", above=0, group=OPTIMISATION)] = (
        None
    )
    """A linear head's own rate is changed in proportion."""
    epochs: Annotated[float | None, Setting("Passes over the data.", above=0, high=1e9, group=OPTIMISATION)] = None
    max_steps: Annotated[
        int | None, Setting("Optimizer steps.", default="60 to 320, by size", above=0, group=OPTIMISATION)
    ] = None
    batch_size: Annotated[int, Setting("Examples a step.", above=0, group=OPTIMISATION)] = 16
    accumulate: Accumulate = 1
    """The result is the same."""
    checkpointing: Checkpointing = False
    """The backward pass takes about a third more time."""
    patience: Annotated[
        int | None,
        Setting("Stop after so many evaluations without a better one.", default="never", above=0, group=OPTIMISATION),
    ] = None
    class_weights: Annotated[
        str | Mapping[str, Any] | None,
        Setting(
            "Weight of every label in the loss: balanced, JSON or a file.", suggest=("balanced",), group=OPTIMISATION
        ),
    ] = None
    """``balanced`` weighs a label by how rare it is."""
    calibrate: Annotated[bool, Setting("Subtract what the task says to empty input.", group=METHOD)] = False
    """Contextual calibration, Zhao et al. 2021, arXiv:2102.09690."""
    members: Annotated[int, Setting("Prefixes of an ensemble, each with its own seed.", above=0, group=METHOD)] = 1
    rank: Annotated[
        int | None,
        Setting("Of an adapter (lora, lora-hybrid, pet).", default="8", above=0, of_method=True, group=METHOD),
    ] = None
    encoder: Annotated[
        str | None,
        Setting("Of p-tuning: lstm or mlp.", default="lstm", of_method=True, suggest=("lstm", "mlp"), group=METHOD),
    ] = None
    projection: Annotated[
        bool | None, Setting("Of p-tuning-v2: learn through an MLP.", of_method=True, group=METHOD)
    ] = None
    freeze_first: Annotated[
        bool | None,
        Setting(
            "Of a prefix: keep its first token as it is.",
            flag="--freeze-first/--learn-first",
            of_method=True,
            group=METHOD,
        ),
    ] = None
    weights: Annotated[
        str | None,
        Setting(
            "Of pet: learn an adapter (lora) or a whole model (all).",
            default="lora",
            of_method=True,
            suggest=("lora", "all"),
            group=METHOD,
        ),
    ] = None
    unlabeled: Annotated[
        str | None,
        Setting(
            "Of pet: rows without labels, for several templates to label for each other.", of_method=True, group=DATA
        ),
    ] = None
    lm_weight: Annotated[
        float | None,
        Setting(
            "Of pet: how much modelling the rows without labels counts.", default="0.01", of_method=True, group=METHOD
        ),
    ] = None
    candidates: Annotated[
        int | None,
        Setting("Of autoprompt: triggers that are tried a step.", default="24", above=0, of_method=True, group=METHOD),
    ] = None
    seed: Annotated[
        int, Setting("Of the order of examples and of random values.", low=0, high=SEEDS - 1, group=OPTIMISATION)
    ] = 0
    """It draws the held-out rows, too."""
    resume: Resume = False
    report_to: ReportTo = "none"
    """A name in `foreword.training.tracker.PACKAGES`, or ``none``."""
    out: Out = None

    def __post_init__(self) -> None:
        check_settings(self)
        check_consistent(self)
        self._check_rows()
        self._check_init()
        Layout.parse(self.columns, self.delimiter)
        LongRows.parse(self.long_rows)
        if self.epochs is not None and self.max_steps is not None:
            raise SettingError(
                "max_steps", "--epochs and --max-steps both set the length of the run; give one of them."
            )

    def _check_rows(self) -> None:
        for name, rows in (("data", self.data), ("eval", self.eval)):
            if isinstance(rows, list) and not all(isinstance(row, Mapping | Row) for row in rows):
                raise SettingError(name, f"{flag_of(name)} must be text, got {reprlib.repr(rows)}.")

    def _check_init(self) -> None:
        kind, colon, name = self.init.partition(":")
        if self.init not in INITS and not (kind == "task" and name):
            near = f"task:{name or 'NAME'}" if colon else (*get_close_matches(self.init, INITS, n=1), None)[0]
            meant = f", did you mean {near}" if near else ""
            raise SettingError(
                "init", f"--init {self.init} is nothing to start from{meant}; choose {', '.join(INITS)} or task:NAME."
            )
        if self.init == "text" and self.init_text is None:
            raise SettingError("init", "--init text has no text to start from; give it with --init-text.")
        if self.init_text is not None and self.init not in ("auto", "text"):
            raise SettingError("init_text", f"--init-text is for --init text, not --init {self.init}.")

    def __repr__(self) -> str:
        """The settings that are not defaults, each in a few words."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = [f"{f.name}={reprlib.repr(given[f.name])}" for f in fields(self) if given[f.name] != f.default]
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def templates(self) -> tuple[str, ...]:
        """The given templates; empty if one is to be guessed. Raises SettingError for one that is no text."""
        if self.template is None:
            return ()
        templates = (self.template,) if isinstance(self.template, str) else tuple(self.template)
        if not templates or not all(isinstance(template, str) for template in templates):
            raise SettingError("template", f"--template must be text or a list of texts, got {self.template!r}.")
        return templates

    @property
    def layout(self) -> Layout:
        """How its CSV and TSV files are laid out."""
        return Layout.parse(self.columns, self.delimiter)

    @property
    def method_options(self) -> dict[str, Any]:
        """Options of the prompt method that are set."""
        names = [name for name, (_, setting) in settings_of(type(self)).items() if setting.of_method]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def parent(self) -> str | None:
        """The task that ``init="task:NAME"`` starts from."""
        return self.init.removeprefix("task:") if self.init.startswith("task:") else None

    def reject_unused_settings(self, names: Sequence[str], because: str) -> None:
        """Raise SettingError if one of these fields is set, since the rows do not use it.

        Args:
            because: why not, as a clause.
        """
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise SettingError(field.name, f"{because}, so {flag_of(field.name)} has no use; leave it out.")

    def reject_unused(self, *names: str, because: str = "") -> None:
        """Raise SettingError if one of these fields is set, since the method does not use it.

        Args:
            because: when that is so, such as ``with --weights all``.
        """
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                why = f" {because}" if because else ""
                raise SettingError(
                    field.name, f"--method {self.method}{why} does not use {flag_of(field.name)}; leave it out."
                )

    def batch_size_for(self, num_examples: int) -> int:
        """Examples a step, at most all: none is in a batch twice."""
        return min(self.batch_size, num_examples)

    def steps(self, num_examples: int) -> int:
        """Optimizer steps over so many examples.

        By default ten passes, but never under 60 steps, where 32 rows would learn nothing, nor over 320, where
        5,000 rows have been seen once.
        """
        if self.max_steps is not None:
            return self.max_steps
        batch_size = self.batch_size_for(num_examples)
        if self.epochs is not None:
            return math.ceil(self.epochs * num_examples / batch_size)
        return min(max(math.ceil(10 * num_examples / batch_size), 60), 320)

    def to_json(self) -> dict[str, Any]:
        """All settings that determine the result, not those of output and resuming; of `_LATER` what is set."""
        data = {name: getattr(self, name) for name in self.keys() if name not in ("resume", "report_to", "out")}
        data["data"] = source_name(self.data)
        data["eval"] = source_name(self.eval) if self.eval is not None else None
        defaults = {field.name: field.default for field in fields(self)}
        data = {name: value for name, value in data.items() if name not in _LATER or value != defaults[name]}
        data["warm_start"] = list(self.warm_start) if self.warm_start else None
        for name in ("verbalizer", "class_weights"):
            data[name] = dict(data[name]) if isinstance(data[name], Mapping) else data[name]
        return {**data, "template": list(self.templates) if len(self.templates) > 1 else self.template}

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """Names of all settings, as recipes in YAML and flags have them."""
        return tuple(field.name for field in fields(cls))


def check_consistent(recipe: Any) -> None:
    """Raise SettingError for settings of a recipe that contradict each other.

    Args:
        recipe: with ``batch_size``, ``accumulate``, ``report_to``, ``resume`` and ``out``.
    """
    if recipe.accumulate > recipe.batch_size:
        raise SettingError(
            "accumulate",
            f"--accumulate {recipe.accumulate} is more than the {recipe.batch_size} examples of a step.",
        )
    check_tracker(recipe.report_to)
    if recipe.resume and recipe.out is None:
        raise SettingError("resume", "--resume needs --out RUN, the run to go on with.")
