"""`distill`: ``foreword distill`` from Python."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace as with_fields

from foreword.api.defaults import BankSource, check_names, open_bank, open_model, reserved_names
from foreword.bank.run_task import write_task
from foreword.core import Kind, Task
from foreword.errors import UsageError
from foreword.models import LanguageModel
from foreword.progress import Say
from foreword.training.distillation.distill import DistillResult
from foreword.training.distillation.distill import distill as run_distill
from foreword.training.distillation.recipe import DistilRecipe


def distill(
    lm: LanguageModel | str | None,
    text: str | Task,
    recipe: DistilRecipe | None = None,
    *,
    kind: Kind | None = None,
    publish: str | None = None,
    bank: BankSource = None,
    replace: bool = False,
    name: str = "run",
    parent: str | None = None,
    curve: Sequence[int] = (),
    say: Say = lambda line: print(line, file=sys.stderr),
) -> DistillResult:
    """Distil a long text into a few virtual tokens that answer like it, and publish them if a name is given.

    >>> policy = "Returns are taken for thirty days, with the receipt. " * 40
    >>> recipe = foreword.DistilRecipe(slots=16, conversations=64, max_steps=100)
    >>> result = foreword.distill(lm, policy, recipe, publish="policy")  # doctest: +SKIP
    >>> result.report.gap_closed  # doctest: +SKIP
    0.84

    Args:
        lm: the base model, loaded or by name; ``None`` is the commands' model.
        text: system prompt, policy, manual, chapter; or a static task, whose text is distilled.
        recipe: settings.
        kind: ``system`` makes the text the system turn of every conversation, ``prompt`` puts it in front as it is; by
            default the static task's, else the first if the model has a chat template.
        publish: name to publish the task under.
        bank: where it is published; by default the commands' bank.
        replace: publish over a task that belongs to another model.
        name: of a task that is not published.
        parent: the task, ``name@version``, that served the text at full length.
        curve: further lengths to learn and measure.
        say: gets a line for every stage.

    Raises:
        UnsupportedModel: an encoder, an encoder-decoder, or a model whose keys cannot move to other positions.
        UsageError, DataError: something in the settings or the files of questions is wrong.
        PublishConflict: the name is taken.
        TrainingError: the run folder holds another run, or the loss is no longer finite.
    """
    check_names([publish], lm)
    lm = open_model(lm)
    if isinstance(text, Task):
        text.prefix.model.check(lm.identity, f"task '{text.name}'")
        kind, parent, text = kind or text.kind, parent or text.ref, _static_text(text)
    result = run_distill(lm, text, recipe, kind=kind, name=publish or name, parent=parent, curve=curve, say=say)
    write_task(result.task, result.folder)
    if publish is None:
        return result
    task = open_bank(bank).publish(result.task, replace=replace, reserved=reserved_names(lm))
    return with_fields(result, task=task)


def _static_text(task: Task) -> str:
    if task.prefix.token_ids is None or task.text is None:
        raise UsageError(
            f"task '{task.ref}' has no text at full length to distil (method {task.method}); give one that was "
            "published from a text, or the text itself."
        )
    return task.text
