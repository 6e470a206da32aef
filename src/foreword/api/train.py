"""`train`: ``foreword train`` from Python."""

from __future__ import annotations

import sys
from dataclasses import replace as with_fields

from foreword.api.defaults import BankSource, check_names, find_task, open_bank, open_model, reserved_names
from foreword.bank.run_task import write_task
from foreword.core import Task
from foreword.errors import SettingError
from foreword.models import LanguageModel
from foreword.progress import Say
from foreword.training.data.training_data import TrainingData
from foreword.training.loop.distributed import is_main_process
from foreword.training.recipe import Recipe
from foreword.training.train import TrainResult
from foreword.training.train import train as run_train


def train(
    lm: LanguageModel | str | None,
    recipe: Recipe,
    *,
    publish: str | None = None,
    bank: BankSource = None,
    replace: bool = False,
    name: str = "run",
    transfer: Task | None = None,
    data: TrainingData | None = None,
    say: Say = lambda line: print(line, file=sys.stderr),
) -> TrainResult:
    """Learn a prompt for a frozen model, and publish it if a name is given.

    >>> rows = [{"text": "a fine film", "label": "good"}, {"text": "dull and long", "label": "bad"}] * 8
    >>> recipe = foreword.Recipe(data=rows, template="{text}\\nMood:{mask}", max_steps=2)
    >>> result = foreword.train(lm, recipe, publish="mood")
    >>> result.task.labels
    ('bad', 'good')

    Args:
        lm: the base model, loaded or by name; its weights are the same afterwards. ``None`` is the commands' model.
        recipe: data, method and hyper-parameters.
        publish: name to publish the task under.
        bank: where it is published, and where ``init="task:NAME"`` is looked up; by default the commands' bank.
        replace: publish over a task that belongs to another model.
        name: of a task that is not published.
        transfer: the task that ``init="task:NAME"`` names, if it is in no bank.
        data: the data of the recipe, if they have been read already.
        say: gets a line for every stage.

    Returns:
        the task and its metrics; the run folder has the task, too, for `foreword.publish` later.

    Raises:
        DataError, TemplateError, VerbalizerError, UsageError: something in the recipe or the data is wrong.
        UnknownTask, ModelMismatch: of the task to start from.
        PublishConflict: the name is taken.
        TrainingError: the run folder holds another run, or training diverged.
    """
    check_names([publish], lm)
    if publish is not None and recipe.weights == "all":
        raise SettingError(
            "weights",
            "weights='all' changes the model itself, which no task can carry; leave publish out, and load the "
            "result's model.",
        )
    if data is None:  # what is wrong with them is said before a model is loaded
        data = TrainingData.read(recipe, vocabulary=None)
        say(data.overview)
    lm = open_model(lm)
    # Whether the model has words is known now: an encoder without them needs a head.
    known = data if data.vocabulary == lm.has_lm_head else None
    if transfer is None and recipe.parent is not None:
        transfer = find_task(recipe.parent, bank, lm.identity)
    result = run_train(lm, recipe, name=publish or name, transfer=transfer, data=known, say=say)
    if not is_main_process():
        return result  # the main process of a distributed run writes and publishes
    if result.model is None:
        write_task(result.task, result.folder)
    if publish is None:
        return result
    task = open_bank(bank).publish(result.task, replace=replace, reserved=reserved_names(lm))
    return with_fields(result, task=task)
