"""A text to embed -> its `Prompt`: behind a task's prefix, without template, closed as the tokenizer closes it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from foreword.core import Task
from foreword.errors import RequestError
from foreword.text import seam, task_prompts
from foreword.text.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def from_text(tokenizer: PreTrainedTokenizerBase, task: Task | None, text: str) -> Prompt:
    """The text verbatim, with the special tokens that the tokenizer adds around a text.

    Raises RequestError if there is nothing to run, for an ensemble, and for soft tokens inside a template.
    """
    _require_one_prefix(task)
    prompt = task_prompts.from_text(tokenizer, task, text)
    return replace(prompt, token_ids=(*prompt.token_ids, *seam.special_tokens(tokenizer)[1]))


def from_ids(task: Task | None, token_ids: list[int]) -> Prompt:
    """Token ids as they are, which hold their special tokens. Raises as `from_text` does."""
    _require_one_prefix(task)
    return task_prompts.from_ids(task, token_ids)


def _require_one_prefix(task: Task | None) -> None:
    if task is not None and task.members:
        raise RequestError(f"task '{task.name}' is an ensemble of prefixes; embed behind one of its members.")
