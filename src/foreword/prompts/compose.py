"""`compose`: the prefixes of several tasks stacked into one.

Text is run behind the prefix before it, which is exact: the stack gives the logits of the joined input. A learned
prefix was learned with nothing in front of it, so behind another it is an approximation: its soft tokens are run again
there, or its keys are rotated to the new positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from foreword.core import Bos, Front, KVPrefix, Task
from foreword.core.overview import Overview, WithOverview
from foreword.errors import TemplateError, UsageError
from foreword.models import LanguageModel
from foreword.models.activations import check_context_length
from foreword.models.past import append_keys_values
from foreword.prompts.lower import empty_prefix, lower, lower_tokens
from foreword.prompts.rotate import rotate
from foreword.prompts.stackable import check_stackable
from foreword.prompts.static import static_task
from foreword.text import seam
from foreword.text.template import Template
from foreword.version import __version__

Placement = Literal["text", "first", "soft", "rotated", "template"]
"""How a task is placed in a stack: its text is run; it comes first, unchanged; its soft tokens are run again; its keys
are rotated; or it has no positions and gives only its template."""


@dataclass(frozen=True)
class StackedTask:
    """One task in a stack."""

    task: Task
    how: Placement

    @property
    def exact(self) -> bool:
        """Whether its prefix works there as it does alone."""
        return self.how not in ("soft", "rotated")


@dataclass(frozen=True, repr=False)
class Composition(WithOverview):
    """The task of a stack, and the tasks that it was made from.

    Attributes:
        task: not yet published.
        parts: in their order.
    """

    task: Task
    parts: tuple[StackedTask, ...]

    def overview(self) -> Overview:
        """The parts, and whether the stack is exact."""
        return Overview(
            f"Composition {self.task.ref!r} of {len(self.parts)} tasks",
            {
                "parts": ", ".join(f"{part.task.ref} ({part.how})" for part in self.parts),
                "prefix": f"{self.task.prefix.length} positions",
                "exact": "yes" if self.exact else "no, an approximation: measure it",
            },
        )

    @property
    def exact(self) -> bool:
        """Whether the stack gives the logits of its parts' joined input."""
        return all(part.exact for part in self.parts)

    def separate_tasks(self) -> list[Task]:
        """Every part that has positions as a task of its own with the stack's template, to compare with the stack."""
        return [_with_interface_of(self.task, part.task) for part in self.parts if part.how != "template"]


def compose(
    lm: LanguageModel,
    name: str,
    tasks: Sequence[Task],
    *,
    template: str | None = None,
    verbalizer: Mapping[str, tuple[str, ...]] | None = None,
) -> Composition:
    """Stack the prefixes of ``tasks``, the first one in front.

    Static tasks alone become one static task of their joined text. Otherwise the stack is a learned task. The last
    task that has a template gives it, with its words and its generation defaults.

    Args:
        lm: the model that all of them were made for.
        name: of the new task.
        template: in place of the tasks' own.
        verbalizer: words for it; by default those of the last task that has some.

    Raises:
        UsageError: fewer than two tasks, one that is more than a prefix, a system turn, or an encoder.
        ModelMismatch: a task of another model.
        UnsupportedModel: a learned prefix would have to move in a model of learned absolute positions.
        PromptTooLong: the stack leaves no room for a request.
        TemplateError: ``template`` has soft tokens, or a ``{mask}`` that no words are known for.
    """
    _check(lm, tasks)
    parts = _parts(tasks)
    interface = _task_interface(tasks, template, verbalizer)
    if all(part.how in ("text", "template") for part in parts):
        made = static_task(lm, name, "prompt", "".join(part.task.text or "" for part in parts))
    else:
        made = Task(name, "composed", _stack(lm, parts))
    return Composition(replace(made, **interface, provenance={**made.provenance, **_provenance(parts)}), parts)


def _check(lm: LanguageModel, tasks: Sequence[Task]) -> None:
    if not lm.causal:
        raise UsageError(
            f"{lm.identity.architecture} reads in both directions, where no prefix stands in front of another; learn "
            "one for both."
        )
    check_stackable(tasks)
    for task in tasks:
        task.prefix.model.check(lm.identity, f"task '{task.ref}'")


def _parts(tasks: Sequence[Task]) -> tuple[StackedTask, ...]:
    parts: list[StackedTask] = []
    for task in tasks:
        first = not any(part.how != "template" for part in parts)
        parts.append(StackedTask(task, _placement(task, first)))
    return tuple(parts)


def _placement(task: Task, first: bool) -> Placement:
    if not task.prefix.length:
        return "template"
    if task.prefix.token_ids is not None:
        return "text"
    if first:
        return "first"
    # Soft tokens between words of a template cannot be run again without them.
    whole = task.soft is not None and len(task.soft) == task.prefix.length
    return "soft" if whole else "rotated"


def _stack(lm: LanguageModel, parts: Sequence[StackedTask]) -> KVPrefix:
    """Every part behind those before it; neighbouring texts are tokenized as one text."""
    placed = [part for part in parts if part.how != "template"]
    past = empty_prefix(lm)
    for is_text, group in groupby(placed, key=lambda part: part.how == "text"):
        tasks = [part.task for part in group]
        if is_text:
            past = _append_text(lm, past, tasks)
            continue
        for task in tasks:
            past = _append_learned(lm, past, task)
    return past


def _append_text(lm: LanguageModel, past: KVPrefix, tasks: Sequence[Task]) -> KVPrefix:
    """Texts run behind a prefix, tokenized as a request there would be."""
    begins = tasks[0].prefix.bos
    bos = past.bos == "request" and begins != "none"
    ids = seam.encode(lm.tokenizer, "".join(task.text or "" for task in tasks), bos=bos)
    return replace(lower_tokens(lm, ids, past=past), bos=_joint_bos(past, begins))


def _append_learned(lm: LanguageModel, past: KVPrefix, task: Task) -> KVPrefix:
    """A learned prefix behind another: its soft tokens run there, or its keys rotated to its new positions."""
    check_context_length(lm.name, lm.context, task.prefix.length, past)
    bos = _joint_bos(past, task.prefix.bos)
    if _placement(task, first=not past.length) == "soft":
        assert task.soft is not None
        soft = task.soft.to(dtype=lm.dtype, device=lm.device)
        return replace(lower(lm, Front(past, soft)), bos=bos)
    if lm.identity.keeps_states:
        raise UsageError(
            f"task '{task.ref}' keeps states of {lm.name}, which hold nothing of what would stand in front of it; name "
            "it first, or learn it again behind the others."
        )
    moved = rotate(lm, task.prefix.to(device=lm.device), past.length).to(dtype=lm.dtype)
    return replace(append_keys_values(lm.identity, past, moved.keys, moved.values), bos=bos)


def _joint_bos(past: KVPrefix, behind: Bos) -> Bos:
    """`KVPrefix.bos` of two prefixes together: there is only one beginning-of-text token."""
    return behind if past.bos == "request" else past.bos


def _task_interface(
    tasks: Sequence[Task], template: str | None, verbalizer: Mapping[str, tuple[str, ...]] | None
) -> dict[str, object]:
    """Template, words and generation defaults of a stack."""
    with_template = next((task for task in reversed(tasks) if task.template is not None), None)
    with_defaults = next((task for task in reversed(tasks) if task.generation), None)
    if template is None:
        if verbalizer is not None:
            raise UsageError("a verbalizer of its own goes with --template; give both, or neither.")
        defaults = with_template or with_defaults
        return {
            "template": with_template.template if with_template is not None else None,
            "verbalizer": with_template.verbalizer if with_template is not None else None,
            "generation": defaults.generation if defaults is not None else {},
            "label_field": with_template.label_field if with_template is not None else "label",
        }
    parsed = Template.parse(template)
    if parsed.num_soft_tokens:
        raise TemplateError("a template for a stack cannot have {soft:N}, which nobody has learned; take it out.")
    parsed.require_answer()
    known = next((task.verbalizer for task in reversed(tasks) if task.verbalizer is not None), None)
    words = verbalizer or known
    if parsed.has_mask and words is None:
        raise TemplateError("no task of the stack has words for {mask}; give them with --verbalizer.")
    if not parsed.has_mask and verbalizer is not None:
        raise TemplateError("a verbalizer needs a template with {mask}; this one generates text.")
    return {
        "template": template,
        "verbalizer": words if parsed.has_mask else None,
        "generation": with_defaults.generation if with_defaults is not None else {},
    }


def _with_interface_of(stack: Task, part: Task) -> Task:
    """A part with the template, words and defaults of the stack; the template is without soft tokens, which are in the
    prefix of the part that has them."""
    template = stack.template
    if template is not None and template != part.template:
        template = Template.parse(template).without_soft_tokens().source
    return replace(
        stack,
        name=part.name,
        version=part.version,
        method=part.method,
        prefix=part.prefix,
        kind=part.kind,
        text=part.text,
        template=template,
    )


def _provenance(parts: Sequence[StackedTask]) -> dict[str, object]:
    return {
        "foreword": __version__,
        "parents": [part.task.ref for part in parts],
        "parts": [{"task": p.task.ref, "digest": p.task.prefix.digest, "how": p.how} for p in parts],
    }
