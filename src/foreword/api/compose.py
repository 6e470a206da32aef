"""`compose`: ``foreword bank compose`` from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace as with_fields
from typing import Any

from foreword.api.defaults import BankSource, check_names, find_task, open_bank, open_model, reserved_names
from foreword.core import Task
from foreword.models import LanguageModel
from foreword.prompts.compose import Composition
from foreword.prompts.compose import compose as stack
from foreword.text.template import Template
from foreword.text.verbalizer import Verbalizer


def compose(
    tasks: Sequence[Task | str],
    publish: str | None = None,
    *,
    template: str | None = None,
    verbalizer: Mapping[str, Any] | str | None = None,
    lm: LanguageModel | str | None = None,
    bank: BankSource = None,
    replace: bool = False,
) -> Composition:
    """Stack tasks into one, the first in front, and publish it if a name is given.

    A static task's text is computed anew where it stands, which is exact; a learned prefix behind another is an
    approximation, which `foreword.evaluate` measures.

    >>> for name, text in {"polite": "Answer politely.\\n", "short": "Answer in one word.\\n"}.items():
    ...     task = foreword.publish(name, text=text, lm=lm)
    >>> composition = foreword.compose(["polite", "short"], "polite-short", lm=lm)
    >>> composition.exact
    True

    Args:
        tasks: two or more, or their names in the bank.
        publish: name to publish the stack under.
        template: of the stack; by default that of the last task that has one.
        verbalizer: words of every label for ``template``.
        lm: the model of all of them, loaded or by name; by default the commands' model.
        bank: a bank, or its folder or URL; by default the commands' bank.
        replace: publish over a task that belongs to another model.

    Raises:
        UnknownTask: a name that is not in the bank.
        UsageError, ModelMismatch, UnsupportedModel, PromptTooLong, TemplateError: tasks that cannot be stacked.
    """
    check_names([publish], lm)
    words = dict(Verbalizer.parse(verbalizer).words) if verbalizer is not None else None
    source = Template.parse(template).source if template is not None else None
    parts = [find_task(task, bank) for task in tasks]
    model = open_model(lm)
    composition = stack(model, publish or "stack", parts, template=source, verbalizer=words)
    if publish is None:
        return composition
    task = open_bank(bank).publish(composition.task, replace=replace, reserved=reserved_names(model))
    return with_fields(composition, task=task)
