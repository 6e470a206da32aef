"""`import_peft` and `export_peft`: ``foreword import peft`` and ``foreword export peft`` from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreword.api.defaults import BankSource, check_names, find_task, open_bank, open_model, reserved_names
from foreword.core import Task
from foreword.errors import UsageError
from foreword.interop.export import export_peft as write_peft
from foreword.interop.peft import base_model, read_peft
from foreword.interop.peft import import_peft as convert_peft
from foreword.interop.prompt_format import PromptFormat
from foreword.models import LanguageModel


def import_peft(
    source: str | os.PathLike[str],
    publish: str | None = None,
    *,
    task_id: int | None = None,
    template: str | None = None,
    verbalizer: str | Mapping[str, Any] | None = None,
    lm: LanguageModel | str | None = None,
    bank: BankSource = None,
    replace: bool = False,
) -> Task:
    """Publish what PEFT learned as a task that gives the answers of `PeftModel.from_pretrained`.

    >>> foreword.export_peft("mood", "adapter", lm=lm)
    'PREFIX_TUNING'
    >>> foreword.import_peft("adapter", "mood-again", lm=lm).prefix.length
    32

    Args:
        source: a folder that PEFT saved, or its Hub id.
        publish: name of the task; by default that of the folder.
        task_id: which task of a MULTITASK_PROMPT_TUNING checkpoint, from 0.
        template: how requests are worded; checkpoints do not say.
        verbalizer: words of every label.
        lm: its base model, loaded or by name; by default what the checkpoint names.
        bank: a bank, or its folder or URL; by default the commands' bank.
        replace: publish over a task that belongs to another model.

    Returns:
        the task with its version.

    Raises:
        UsageError: there is none, no base model is known, or it is of a kind that would answer otherwise here.
        CorruptFile: a file is damaged, or is a pickle with more in it than tensors.
        ModelMismatch: it was learned on another model.
    """
    prompt_format = PromptFormat.parse(template, verbalizer)
    checkpoint = read_peft(os.fspath(source))
    name = publish or checkpoint.name.lower()
    lm = lm or base_model(checkpoint)
    check_names([name], lm)
    if lm is None:
        raise UsageError(f"{checkpoint} does not say which model it is for; give it as lm.")
    model = open_model(lm)
    task = convert_peft(model, checkpoint, name, task_id=task_id, prompt_format=prompt_format)
    return open_bank(bank).publish(task, replace=replace, reserved=reserved_names(model))


def export_peft(
    task: Task | str,
    path: str | os.PathLike[str],
    *,
    lm: LanguageModel | str | None = None,
    bank: BankSource = None,
) -> str:
    """Write a folder for `PeftModel.from_pretrained`, which gives the logits of the task.

    >>> foreword.export_peft("mood", "adapter-of-mood", lm=lm)
    'PREFIX_TUNING'

    Args:
        task: a task, or its name in the bank.
        path: folder to write; it must not exist, or be empty.
        lm: the task's own model, loaded or by name; by default the commands' model.
        bank: a bank, or its folder or URL; by default the commands' bank.

    Returns:
        PREFIX_TUNING, PROMPT_TUNING or LORA.

    Raises:
        UnknownTask: a name that is not in the bank.
        ModelMismatch: ``lm`` is another model.
        UsageError: the task has something that PEFT cannot hold, or the folder is not empty.
    """
    found = find_task(task, bank)
    return write_peft(open_model(lm), found, Path(path))
