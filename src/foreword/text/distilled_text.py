"""A stand-in: a learned prefix in the place of a text, such as a distilled one. Requests continue that text, which is
not run, with the very tokens that would stand behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from foreword.core import Task
from foreword.errors import TemplateError
from foreword.text import chat, seam

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters of a text that say into which tokens its continuation is cut; the rest of it is too far away.
_SEAM = 64


def stands_for_text(task: Task) -> bool:
    """Whether the task's prefix stands in for its text: a static prefix is the text itself."""
    return task.kind != "learned" and task.text is not None and task.prefix.token_ids is None


def encode_continuation(tokenizer: PreTrainedTokenizerBase, task: Task, text: str) -> list[int]:
    """Token ids that a text has where it continues the task's; those that it has alone where the two merge."""
    try:
        return seam.continuation_ids(tokenizer, text, _leading(tokenizer, task)[-_SEAM:])
    except TemplateError:
        return seam.encode(tokenizer, text, bos=False)


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, task: Task, messages: Sequence[Mapping[str, object]]
) -> list[int]:
    """Token ids of a conversation behind the task's text, or behind the system turn of it."""
    if task.kind != "system":
        return encode_continuation(tokenizer, task, chat.without_bos(tokenizer, chat.render(tokenizer, messages)))
    rendered = chat.render(tokenizer, messages, system=task.text)
    return encode_continuation(
        tokenizer, task, rendered[seam.common_prefix_length(_leading(tokenizer, task), rendered) :]
    )


def _leading(tokenizer: PreTrainedTokenizerBase, task: Task) -> str:
    """The text that a request continues."""
    text = task.text or ""
    return chat.system_text(tokenizer, text) if task.kind == "system" else text
