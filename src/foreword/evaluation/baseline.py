"""The baseline of a task: the base model with the task's template and words, and nothing learned."""

from __future__ import annotations

from foreword.core import KVPrefix, ModelIdentity, Task
from foreword.errors import UsageError
from foreword.text.template import Template


def baseline_task(task: Task, name: str, model: ModelIdentity) -> Task:
    """A task of the base model to compare a learned task with.

    Args:
        task: gives template (none for conversations), verbalizer and generation defaults.
        name: of the base model.
        model: its identity.

    Raises:
        UsageError: the task has a head, which the base model lacks.
    """
    if task.head is not None:
        raise UsageError(f"task '{task.name}' labels with a head that was learned; the base model has none to compare.")
    keys, values = (tuple(each[:, :0] for each in side) for side in (task.prefix.keys, task.prefix.values))
    empty = KVPrefix(model, keys, values, offset=0)
    plain = Template.parse(task.template).without_soft_tokens().source if task.template is not None else None
    return Task(
        name,
        "manual",
        empty,
        template=plain,
        verbalizer=task.verbalizer,
        generation=task.generation,
        label_field=task.label_field,
    )
