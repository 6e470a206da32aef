"""`publish`: ``foreword publish`` from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack, overload

from foreword.api.defaults import BankSource, check_names, open_bank, open_model, reserved_names
from foreword.bank.run_task import read_task
from foreword.bank.time_to_live import parse_duration
from foreword.core import Task
from foreword.errors import UsageError
from foreword.evaluation.sampling_params import generation_defaults
from foreword.models import LanguageModel
from foreword.prompts.static import static_task


class TaskDefaults(TypedDict, total=False):
    """A task's own sampling parameters, where a request says nothing."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop: str | Sequence[str]


class HasTask(Protocol):
    """The result of `foreword.train`, `search`, `distill` or `compose`."""

    @property
    def task(self) -> Task: ...


@overload
def publish(
    source: HasTask | Task | Path,
    name: str | None = None,
    *,
    ttl: str | None = None,
    bank: BankSource = None,
    replace: bool = False,
    **generation: Unpack[TaskDefaults],
) -> Task: ...


@overload
def publish(
    source: str,
    name: None = None,
    *,
    system: str | None = None,
    text: str | None = None,
    lm: LanguageModel | str | None = None,
    ttl: str | None = None,
    bank: BankSource = None,
    replace: bool = False,
    **generation: Unpack[TaskDefaults],
) -> Task: ...


def publish(
    source: HasTask | Task | Path | str,
    name: str | None = None,
    *,
    system: str | None = None,
    text: str | None = None,
    lm: LanguageModel | str | None = None,
    ttl: str | None = None,
    bank: BankSource = None,
    replace: bool = False,
    **generation: Unpack[TaskDefaults],
) -> Task:
    """Publish what was learned, or a prompt, as a task.

    >>> foreword.publish("support", system="You help the customers of a lamp shop.", lm=lm, max_tokens=200).kind
    'system'
    >>> task = foreword.Bank().load("support")
    >>> foreword.publish(task, "support-copy").name
    'support-copy'

    Args:
        source: the result of `foreword.train`, `search`, `distill` or `compose`, a `Task`, or the `Path` of a run
            folder; or the name of a new task, with ``system`` or ``text``.
        name: of the task, if ``source`` is none; by default its own.
        system: a system prompt.
        text: a text that stands in front of every request.
        lm: the model that the prompt is computed with, loaded or by name; by default the commands' model.
        ttl: expire after this time without a use, such as ``7d``; by default never.
        bank: a bank, or its folder or URL; by default the commands' bank.
        replace: publish over a task that belongs to another model.
        generation: the task's own sampling parameters, see `TaskDefaults`.

    Returns:
        the task with its version.

    Raises:
        UsageError: a bad name, an empty text, or none or several things to publish.
        PublishConflict: the name belongs to a base model or to a task of another model.
    """
    seconds = parse_duration(ttl) if ttl is not None else None
    own = _generation(generation)
    if isinstance(source, str):
        model, task = _prompt_task(source if name is None else None, system, text, lm)
    elif not (system is text is lm is None):
        raise UsageError(
            "system, text and lm make a new prompt, whose name stands first: publish('support', text=...)."
        )
    else:
        model, task = None, _learned_task(source, name)
    task = with_fields(task, generation={**task.generation, **own}, ttl=seconds if ttl is not None else task.ttl)
    return open_bank(bank).publish(task, replace=replace, reserved=reserved_names(model))


def _generation(given: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(given) - set(TaskDefaults.__annotations__)):
        known = ", ".join(TaskDefaults.__annotations__)
        raise UsageError(f"publish has no option {unknown[0]!r}; a task's own sampling parameters are {known}.")
    stop = {"stop": [given["stop"]]} if isinstance(given.get("stop"), str) else {}
    return generation_defaults(**{**given, **stop})


def _prompt_task(
    name: str | None, system: str | None, text: str | None, lm: LanguageModel | str | None
) -> tuple[LanguageModel, Task]:
    if name is None or (system is None) == (text is None):
        raise UsageError("give a name and one of system and text: publish('support', system='You help ...').")
    check_names([name], lm)
    model = open_model(lm)
    return model, static_task(model, name, "prompt" if system is None else "system", system or text or "")


def _learned_task(source: HasTask | Task | Path, name: str | None) -> Task:
    if isinstance(source, Path):
        return read_task(source, _required(name))
    task: Any = getattr(source, "task", source)
    if not isinstance(task, Task):
        raise UsageError(f"there is no task in a {type(source).__name__}; publish a result, a Task or a run's Path.")
    return with_fields(task, name=name or _required(task.name if task.name != "run" else None))


def _required(name: str | None) -> str:
    if name is None:
        raise UsageError("the task needs a name to be asked by: publish(result, 'reviews').")
    return name
