"""`search`: ``foreword search`` from Python."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace as with_fields
from typing import Any

from foreword.api.defaults import BankSource, check_names, find_task, open_bank, open_model, reserved_names
from foreword.bank.run_task import write_task
from foreword.models import LanguageModel
from foreword.progress import Say
from foreword.training.recipe import Recipe
from foreword.training.search.config import DEFAULT_ETA, SearchConfig
from foreword.training.search.search import SearchResult
from foreword.training.search.search import search as run_search


def search(
    lm: LanguageModel | str | None,
    recipe: Recipe,
    vary: Mapping[str, Any],
    *,
    trials: int | None = None,
    at_once: int | None = None,
    halving: int | None = DEFAULT_ETA,
    publish: str | None = None,
    bank: BankSource = None,
    replace: bool = False,
    say: Say = lambda line: print(line, file=sys.stderr),
) -> SearchResult:
    """Learn with many settings side by side in one run, and publish what does best if a name is given.

    >>> rows = [{"text": "a fine film", "label": "good"}, {"text": "dull and long", "label": "bad"}] * 8
    >>> recipe = foreword.Recipe(data=rows, template="{text}\\nMood:{mask}", max_steps=2)
    >>> result = foreword.search(lm, recipe, {"lr": [1e-3, 5e-3]}, publish="tuned")
    >>> sorted(result.winner.params)
    ['lr']

    Args:
        lm: the base model, loaded or by name; ``None`` is the commands' model.
        recipe: settings that all trials have in common.
        vary: a list of values, or a range such as ``{"low": 1e-4, "high": 1e-2, "log": True}``, by setting.
        trials: points to try; by default all of lists, 32 of ranges.
        at_once: trials that learn in one batch; by default 16.
        halving: at every rung one trial in so many goes on; ``None`` for all.
        publish: name to publish the best task under.
        bank: where it is published, and where ``init: task:NAME`` is looked up; by default the commands' bank.
        replace: publish over a task that belongs to another model.
        say: gets a line for every stage.

    Raises:
        DataError, TemplateError, VerbalizerError, UsageError: something in recipe, space or data is wrong.
        TrainingError: the run folder holds another search, or no trial could be learned.
    """
    check_names([publish], lm)
    config = SearchConfig.of(vary, trials, at_once, halving)
    config.check(recipe)
    config.check_not_overridden(recipe)
    lm = open_model(lm)
    transfers = {parent: find_task(parent, bank, lm.identity) for parent in config.parents(recipe)}
    result = run_search(lm, recipe, config, name=publish or "run", transfers=transfers, say=say)
    write_task(result.task, result.folder)
    if publish is None:
        return result
    task = open_bank(bank).publish(result.task, replace=replace, reserved=reserved_names(lm))
    return with_fields(result, task=task)
