"""Requests to tasks whose learned prefix replaces a text, as distillation makes them.

The text is not run, but requests are tokenized as its continuation, so that they have the ids that they would have
behind the text itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from foreword.core import Task
from foreword.errors import TemplateError
from foreword.text import chat, seam

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters at the end of the text that its continuation is tokenized with; what is farther away changes nothing.
_CONTEXT_CHARS = 64


def stands_for_text(task: Task) -> bool:
    """Whether the task's prefix was learned in place of its text; a static prefix is the text itself."""
    return task.kind != "learned" and task.text is not None and task.prefix.token_ids is None


def encode_continuation(tokenizer: PreTrainedTokenizerBase, task: Task, text: str) -> list[int]:
    """Token ids of a text as the continuation of the task's text; of the text alone if the two merge."""
    try:
        return seam.continuation_ids(tokenizer, text, _preceding_text(tokenizer, task)[-_CONTEXT_CHARS:])
    except TemplateError:
        return seam.encode(tokenizer, text, bos=False)


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, task: Task, messages: Sequence[Mapping[str, object]]
) -> list[int]:
    """Token ids of a conversation behind the task's text, or behind the system turn that the text is."""
    if task.kind != "system":
        return encode_continuation(tokenizer, task, chat.without_bos(tokenizer, chat.render(tokenizer, messages)))
    rendered = chat.render(tokenizer, messages, system=task.text)
    return encode_continuation(
        tokenizer, task, rendered[seam.common_prefix_length(_preceding_text(tokenizer, task), rendered) :]
    )


def _preceding_text(tokenizer: PreTrainedTokenizerBase, task: Task) -> str:
    """The text that a request continues: the task's, rendered by the chat template if it is a system turn."""
    text = task.text or ""
    return chat.system_text(tokenizer, text) if task.kind == "system" else text
