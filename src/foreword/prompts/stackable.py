"""Checks of tasks that are stacked or combined, which must be one prefix and nothing else; they need no model."""

from __future__ import annotations

from collections.abc import Sequence

from foreword.core import Task
from foreword.errors import UsageError
from foreword.text.template import Template


def require_bare_prefix(task: Task, verb: str) -> None:
    """Raise UsageError for a task that is more than a prefix, where only prefixes can be combined or stacked."""
    parts = {
        "soft tokens inside its template": _soft_inside(task),
        "an adapter": task.adapter is not None,
        "a head": task.head is not None,
        "a calibration": task.bias is not None,
        "members of its own": bool(task.members),
    }
    if has := [part for part, there in parts.items() if there]:
        raise UsageError(
            f"task '{task.ref}' has {' and '.join(has)}, and only prefixes can be {verb}; name tasks that are one "
            "prefix and nothing else."
        )


def check_stackable(tasks: Sequence[Task]) -> None:
    """Raise UsageError for tasks that no model can stack."""
    if len(tasks) < 2:
        raise UsageError(f"a stack needs two tasks or more, found {len(tasks)}; name those to be stacked.")
    for task in tasks:
        require_bare_prefix(task, "stacked")
        if task.kind == "system":
            raise UsageError(
                f"task '{task.ref}' is a system turn, which cannot be stacked; publish its text with --text."
            )
        if task.prefix.token_ids is not None and task.text is None:
            raise UsageError(
                f"task '{task.ref}' is static and has lost its text, so it cannot be run behind another; publish its "
                "text with --text."
            )
    if not any(task.prefix.length for task in tasks):
        raise UsageError("none of the tasks has a position to stack; name a static task or a learned one.")


def _soft_inside(task: Task) -> bool:
    """Whether soft tokens of the task's template are not in its prefix; those in front are, except for an encoder."""
    if task.soft is None or task.template is None:
        return task.soft is not None and not task.prefix.length
    return Template.parse(task.template).num_inner_soft_tokens(causal=task.prefix.length > 0) > 0
