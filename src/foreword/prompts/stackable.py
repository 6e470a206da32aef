"""`require_bare_prefix`: the check of tasks that are stacked or combined, which must be one prefix and nothing else."""

from __future__ import annotations

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


def _soft_inside(task: Task) -> bool:
    """Whether soft tokens of the task's template are not in its prefix; those in front are, except for an encoder."""
    if task.soft is None or task.template is None:
        return task.soft is not None and not task.prefix.length
    return Template.parse(task.template).num_inner_soft_tokens(causal=task.prefix.length > 0) > 0
