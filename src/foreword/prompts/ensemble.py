"""`ensemble`: one task of several prefixes with the same template and labels, whose predictions are combined."""

from __future__ import annotations

from collections.abc import Sequence

from foreword.core import Combine, Task
from foreword.errors import UsageError
from foreword.prompts.stackable import require_bare_prefix


def ensemble(name: str, tasks: Sequence[Task], combine: Combine) -> Task:
    """A task whose members are the prefixes of ``tasks``, in their order.

    Args:
        name: of the new task; template and defaults are those of the first one.
        tasks: two or more, each one learned prefix, of one model, template and verbalizer.
        combine: mean probability of the labels, or a vote.

    Raises:
        UsageError: tasks that differ in model, template or verbalizer, or are more than a prefix.
    """
    if len(tasks) < 2:
        raise UsageError(f"an ensemble needs two tasks or more, found {len(tasks)}; name those to be combined.")
    first = tasks[0]
    for task in tasks:
        require_bare_prefix(task, "combined")
        _check_labels(task)
        _check_alike(first, task)
    _check_different(tasks)
    return Task(
        name,
        "ensemble",
        first.prefix,
        template=first.template,
        verbalizer=first.verbalizer,
        generation=first.generation,
        provenance={"parents": [task.ref for task in tasks]},
        members=tuple(task.prefix for task in tasks[1:]),
        combine=combine,
        label_field=first.label_field,
    )


def _check_labels(task: Task) -> None:
    if task.kind != "learned":
        raise UsageError(f"task '{task.ref}' is of the kind {task.kind}, not learned; name learned tasks only.")
    if not task.labels or task.template is None:
        raise UsageError(
            f"task '{task.ref}' has no labels to choose from, and generated answers cannot be combined; name tasks "
            "with a template and a verbalizer."
        )


def _check_alike(first: Task, task: Task) -> None:
    """Raise UsageError that names everything in which a task differs from the first, order of labels included."""
    compared = {
        "model": (first.prefix.model, task.prefix.model),
        "template": (first.template, task.template),
        "verbalizer": (_words(first), _words(task)),
        "beginning-of-text rule": (first.prefix.bos, task.prefix.bos),
    }
    if differs := [name for name, (one, other) in compared.items() if one != other]:
        raise UsageError(
            f"task '{task.ref}' differs from '{first.ref}' in its {' and its '.join(differs)}; name tasks that ask the "
            "same question of one model."
        )


def _check_different(tasks: Sequence[Task]) -> None:
    seen: dict[str, Task] = {}
    for task in tasks:
        other = seen.setdefault(task.prefix.digest, task)
        if other is not task:
            raise UsageError(f"tasks '{other.ref}' and '{task.ref}' are the same prefix; name each prefix once.")


def _words(task: Task) -> list[tuple[str, tuple[str, ...]]]:
    return [(label, tuple(words)) for label, words in (task.verbalizer or {}).items()]
