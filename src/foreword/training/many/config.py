"""`MultiTaskConfig`: settings of ``foreword train-many``, of all tasks and of single ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from foreword.errors import SettingError
from foreword.training.recipe import Recipe
from foreword.training.setting import DATA, METHOD, OPTIMISATION, Setting, check_settings, flag_of

if TYPE_CHECKING:
    from foreword.core import Task
    from foreword.models import LanguageModel

# Settings that a single task may have.
TASK_SETTINGS = (
    "lr",
    "epochs",
    "max_steps",
    "batch_size",
    "patience",
    "seed",
    "template",
    "verbalizer",
    "class_weights",
)
# Methods that do more than train one encoder with one optimizer.
UNSUPPORTED_METHODS = ("pet", "autoprompt", "manual")


@dataclass(frozen=True)
class MultiTaskConfig:
    """Settings of ``foreword train-many``.

    Attributes:
        recipe: of all tasks; ``data`` and ``eval`` name the folder or file with the rows of all.
        out: the run folder.
        tasks: settings of single tasks by name, of the keys `TASK_SETTINGS`.

    The other fields are flags of the command, too.
    """

    recipe: Recipe
    out: Path
    tasks: Mapping[str, Mapping[str, Any]]
    at_once: Annotated[
        int, Setting("Tasks that are learned, and in memory, at a time.", above=0, group=OPTIMISATION)
    ] = 32
    min_rows: Annotated[int, Setting("Leave out tasks with fewer rows.", low=2, group=DATA)] = 8
    shared_init: Annotated[bool, Setting("Start all from a prefix learned on everybody's rows.", group=METHOD)] = False
    shared_length: Annotated[
        int,
        Setting(
            "Virtual tokens learned on everybody's rows, then frozen in front of each task's own.", low=0, group=METHOD
        ),
    ] = 0

    def __post_init__(self) -> None:
        recipe = self.recipe
        if recipe.method in UNSUPPORTED_METHODS:
            raise SettingError("method", f"--method {recipe.method} learns one task at a time; use foreword train.")
        check_settings(self)
        self._check_shared()
        for name, settings in self.tasks.items():
            if not isinstance(settings, Mapping):
                raise SettingError("tasks", f"--tasks must give '{name}' settings, such as {{\"lr\": 0.01}}.")
            if unknown := sorted(set(settings) - set(TASK_SETTINGS)):
                raise SettingError(
                    "tasks", f"--tasks gives '{name}' {unknown[0]!r}; a task of its own has {', '.join(TASK_SETTINGS)}."
                )
            try:
                self.task_recipe(name)
            except SettingError as error:
                raise SettingError("tasks", f"--tasks, '{name}': {error}") from error

    def check_names(self, names: Collection[str]) -> None:
        """Raise SettingError for settings of a task that is not among the tasks with rows."""
        if unknown := sorted(set(self.tasks) - set(names)):
            raise SettingError("tasks", f"--tasks names '{unknown[0]}', of which there are no rows; correct the name.")

    def task_recipe(self, name: str) -> Recipe:
        """The recipe of one task."""
        settings = dict(self.tasks.get(name, {}))
        if "epochs" in settings:
            settings.setdefault("max_steps", None)
        elif "max_steps" in settings:
            settings["epochs"] = None
        return replace(self.recipe, **settings)

    def settings(self, lm: LanguageModel, transfer: Task | None) -> dict[str, Any]:
        """Settings that must be the same for a run to be resumed; the rows of tasks may change."""
        recipe = {name: value for name, value in self.recipe.to_json().items() if name not in ("data", "eval")}
        return {
            **recipe,
            "shared_init": self.shared_init,
            "shared_length": self.shared_length,
            "transfer": transfer.prefix.digest if transfer is not None else None,
            "model": lm.identity.weights,
            "dtype": str(lm.dtype),
        }

    def _check_shared(self) -> None:
        recipe = self.recipe
        flag = "shared_init" if self.shared_init else "shared_length"
        if not (self.shared_init or self.shared_length):
            return
        if self.shared_init and self.shared_length:
            raise SettingError(
                flag, "--shared-init and --shared-length are two ways to learn from everybody; give one of them."
            )
        option = flag_of(flag)
        if recipe.parent is not None:
            raise SettingError(flag, f"{option} and --init {recipe.init} both say where to start; give one of them.")
        # They load torch, and the command line reads this file for its help.
        from foreword.prompts.lora import LoRA
        from foreword.prompts.registry import get_method

        chosen = get_method(recipe.method, **recipe.method_options)
        if not chosen.length or isinstance(chosen, LoRA):
            raise SettingError(flag, f"{option} is for prefixes alone, and --method {recipe.method} is more or less.")
        if self.shared_length and recipe.freeze_first:
            raise SettingError("freeze_first", "--freeze-first freezes what --shared-length freezes already.")
        if any("{soft:" in each for each in recipe.templates):
            raise SettingError(flag, f"{option} learns soft tokens in front, so the template cannot have {{soft:N}}.")
