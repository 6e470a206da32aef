"""Requests to tasks whose learned prefix replaces a text, as distillation makes them.

The text is not run, but requests are tokenized as its continuation, so that they have the ids that they would have
behind the text itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

from foreword.core import Task
from foreword.errors import RequestError, TemplateError
from foreword.text import chat, seam, tool_turns
from foreword.text.tool_formats import HERMES, ToolFormat
from foreword.text.tools import parse_tools

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
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    messages: Sequence[Mapping[str, object]],
    *,
    answer_prefix: str = "",
    **options: Unpack[chat.RenderOptions],
) -> list[int]:
    """Token ids of a conversation behind the task's text, or behind the system turn that the text is.

    Args:
        answer_prefix: a beginning of the answer, behind the rendered conversation.
        options: of the chat template. Tools stand in the first user turn, since the learned prefix has the place of
            the system turn.
    """
    if task.kind != "system":
        rendered = chat.render(tokenizer, messages, **options) + answer_prefix
        return encode_continuation(tokenizer, task, chat.without_bos(tokenizer, rendered))
    if options.get("tools"):
        messages, options = _with_tools_in_user_turn(messages, options)
    rendered = chat.render(tokenizer, messages, system=task.text, **options) + answer_prefix
    return encode_continuation(
        tokenizer, task, rendered[seam.common_prefix_length(_preceding_text(tokenizer, task), rendered) :]
    )


def tool_format(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    messages: Sequence[Mapping[str, object]],
    **options: Unpack[chat.RenderOptions],
) -> ToolFormat:
    """The format of calls behind what `encode_conversation` makes of the same arguments."""
    return HERMES if task.kind == "system" else chat.tool_format(tokenizer, messages, **options)


def _with_tools_in_user_turn(
    messages: Sequence[Mapping[str, object]], options: chat.RenderOptions
) -> tuple[Sequence[Mapping[str, object]], chat.RenderOptions]:
    turns = chat.validate_messages(messages)
    if all(turn["role"] != "user" for turn in turns):
        raise RequestError("the messages have no user turn, in front of which this task tells its tools; send one.")
    tools = [tool.definition for tool in parse_tools(options.get("tools"))]
    return tool_turns.in_user_turn(tool_turns.as_text(turns), tools), {**options, "tools": None}


def _preceding_text(tokenizer: PreTrainedTokenizerBase, task: Task) -> str:
    """The text that a request continues: the task's, rendered by the chat template if it is a system turn."""
    text = task.text or ""
    return chat.system_text(tokenizer, text) if task.kind == "system" else text
