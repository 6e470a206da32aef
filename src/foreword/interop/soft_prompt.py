"""Soft tokens of a task as PEFT has them: in front of the text, where an encoder does not lower them."""

from __future__ import annotations

from torch import Tensor

from foreword.core import Task
from foreword.models import LanguageModel
from foreword.text.template import SoftSlot, Template


def inner_soft_tokens(lm: LanguageModel, task: Task) -> int:
    """Number of soft tokens inside a task's template, where PEFT has none: those that are not in front of it."""
    if task.template is None:
        return 0
    template = Template.parse(task.template)
    pieces = template.constant_pieces
    leading = not lm.causal and all(isinstance(piece, SoftSlot) for piece in pieces)
    in_front = sum(piece.length for piece in pieces if isinstance(piece, SoftSlot)) if leading else 0
    return template.num_inner_soft_tokens(lm.causal) - in_front


def template_soft_tokens(task: Task) -> Tensor | None:
    """The learned soft tokens that fill the slots of an encoder's template: the last ones; ``None`` without slots."""
    count = Template.parse(task.template).num_soft_tokens if task.template is not None else 0
    return task.soft[-count:] if task.soft is not None and count else None
