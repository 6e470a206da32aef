"""What a call means that names a model or a bank by a text, or not at all: what the command line means."""

from __future__ import annotations

import os
from collections.abc import Sequence

from foreword.bank.bank import Bank, check_free
from foreword.core import ModelIdentity, Task
from foreword.errors import UsageError
from foreword.home import default_model
from foreword.models import LanguageModel, load_model

BankSource = Bank | str | os.PathLike[str] | None
"""A bank, or its folder or URL; ``None`` is the bank of the commands."""


def open_model(lm: LanguageModel | str | None) -> LanguageModel:
    """A loaded model, as it is; a Hub id, folder, ``.gguf`` file or built-in name is loaded, ``None`` is the commands'
    model."""
    return lm if isinstance(lm, LanguageModel) else load_model(lm or default_model())


def open_bank(bank: BankSource) -> Bank:
    return bank if isinstance(bank, Bank) else Bank(bank)


def find_task(task: Task | str, bank: BankSource, model: ModelIdentity | None = None) -> Task:
    """A task, as it is, or of the bank by its name or ``name@version``; checked against a model if one is given.

    Raises UnknownTask, ModelMismatch.
    """
    if not isinstance(task, Task):
        if not isinstance(task, str):
            raise UsageError(f"a task must be a Task or the name of one in a bank, got {type(task).__name__}.")
        task = open_bank(bank).load(task)
    if model is not None:
        task.prefix.model.check(model, f"task '{task.name}'")
    return task


def check_names(names: Sequence[str | None], lm: LanguageModel | str | None) -> None:
    """Raise UsageError or PublishConflict for a name under which no task can be published, before work is done."""
    for name in names:
        if name is not None:
            check_free(name, reserved_names(lm))


def reserved_names(lm: LanguageModel | str | None) -> list[str]:
    """Names that no task may have: that of the base model."""
    return [lm.name if isinstance(lm, LanguageModel) else lm or default_model()]
