"""Chat messages -> text and token ids, by the model's own chat template.

Many templates leave out what they do not know without a word: tools, calls of tools, or what those returned. So their
rendering is proved first, with marks in their places. Where a template leaves out a mark, or writes calls in a format
that `tool_formats` cannot read, tools and calls are written as ordinary turns (`tool_turns`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from foreword.errors import RequestError, TemplateError
from foreword.text import seam, tool_turns
from foreword.text.messages import Turn, validate_messages
from foreword.text.tool_formats import HERMES, ToolFormat, written_format
from foreword.text.tools import parse_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["RenderOptions", "encode", "render", "system_text", "tool_format", "validate_messages", "without_bos"]

_Definitions = Sequence[Mapping[str, Any]]

# Parameters of `apply_chat_template`, which a client's `chat_template_kwargs` must not replace.
_RESERVED_KWARGS = frozenset(
    (
        *("messages", "conversation", "tools", "documents", "chat_template", "tokenize", "sanitize_control_tokens"),
        *("add_generation_prompt", "continue_final_message", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
    )
)
_MARK = re.compile("mark[0-9]{8}")
_MOST_LEFT_OUT = 32
_CONTINUE_HERE = "\u2060continue-here\u2060"
_PROBE_CALL: Turn = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "probe0000", "type": "function", "function": {"name": "probe", "arguments": {"key": "a"}}}],
}
_PROBE_TURNS: Sequence[Turn] = (
    {"role": "user", "content": "Hello"},
    _PROBE_CALL,
    {"role": "tool", "tool_call_id": "probe0000", "name": "probe", "content": "b"},
)


class RenderOptions(TypedDict, total=False):
    """What changes the text of a conversation besides its messages.

    Attributes:
        tools: functions that the model may call, in OpenAI's shape.
        template_kwargs: variables for the chat template, such as ``enable_thinking``.
        add_generation_prompt: end with the opening of the assistant's turn.
        continue_final_message: end with the text of the last message, whose turn stays open.
    """

    tools: _Definitions | None
    template_kwargs: Mapping[str, Any] | None
    add_generation_prompt: bool
    continue_final_message: bool


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, object]],
    *,
    system: str | None = None,
    **options: Unpack[RenderOptions],
) -> str:
    """The conversation as text, up to where the assistant begins to answer.

    Args:
        tokenizer: carries the chat template.
        messages: in OpenAI's shape, see `validate_messages`.
        system: a system turn to put in front; the template then leaves out its default one.
        options: see `RenderOptions`.

    Raises TemplateError if there is no chat template, RequestError if it refuses these messages or options.
    """
    continued = options.get("continue_final_message", False)
    opened = options.get("add_generation_prompt", not continued)
    if continued and opened:
        raise RequestError(
            "continue_final_message goes on with the last message and add_generation_prompt begins a new one; send "
            "add_generation_prompt: false with it."
        )
    layout = _choose_layout(tokenizer, messages, system, options)
    turns = layout.turns
    if continued:
        turns = [*turns[:-1], turns[-1] | {"content": turns[-1]["content"] + _CONTINUE_HERE}]
    rendered = layout.template.render(turns, layout.tools, opened)
    if not continued:
        return rendered
    text, found, _ = rendered.rpartition(_CONTINUE_HERE)
    if not found:
        raise RequestError(
            "the model's chat template leaves the text of the last message out, so it cannot be continued; leave "
            "continue_final_message out."
        )
    return text


def tool_format(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, object]],
    *,
    system: str | None = None,
    **options: Unpack[RenderOptions],
) -> ToolFormat:
    """The format in which the model will write calls when it answers what `render` makes of the same arguments."""
    return _choose_layout(tokenizer, messages, system, options).calls


def system_text(tokenizer: PreTrainedTokenizerBase, system: str) -> str:
    """The text that every conversation with this system turn begins with.

    Raises TemplateError if the chat template leaves the system turn out, and whatever `render` raises.
    """
    # The user turns differ in their first character, so the common prefix ends where the user's text begins.
    first, second = (
        render(tokenizer, [{"role": "user", "content": user}], system=system) for user in ("Hello", "你好")
    )
    shared = first[: seam.common_prefix_length(first, second)]
    if system.strip() not in shared:
        raise TemplateError(
            "the model's chat template leaves the system turn out, so it would change nothing; publish the "
            "text with --text instead of --system."
        )
    return shared


def encode(tokenizer: PreTrainedTokenizerBase, rendered: str, *, bos: bool = True) -> list[int]:
    """Token ids of a rendered conversation, with the leading specials once (most templates write them), or without."""
    if not bos:
        return seam.encode(tokenizer, without_bos(tokenizer, rendered), bos=False)
    leading = list(seam.special_tokens(tokenizer)[0])
    ids = seam.encode(tokenizer, rendered, bos=False)
    return ids if ids[: len(leading)] == leading else [*leading, *ids]


def without_bos(tokenizer: PreTrainedTokenizerBase, rendered: str) -> str:
    """A rendered conversation without its beginning-of-text token, to continue another text."""
    # Not `tokenizer.bos_token`: in SmolLM that is <|im_start|>, which opens every turn.
    leading = tokenizer.convert_ids_to_tokens(list(seam.special_tokens(tokenizer)[0]))
    return rendered.removeprefix("".join(leading))


@dataclass(frozen=True)
class _ChatTemplate:
    """The chat template of a tokenizer, with a request's variables."""

    tokenizer: Any
    kwargs: Mapping[str, Any]

    def render(self, turns: Sequence[Turn], tools: _Definitions | None, open_answer: bool) -> str:
        """Raises RequestError with the template's reason where it refuses the turns.

        Templates of models that read images too may know content as a list of parts alone, and write nothing of a
        text, or refuse it: there the turns are rendered with lists, if more of what they say is written then.
        """
        refusal, written = None, []
        for arranged in (turns, [_in_parts(turn) for turn in turns]):
            try:
                rendered = self._apply(arranged, tools, open_answer)
            except RequestError as error:
                refusal = refusal or error
                continue
            if arranged is not turns and any(_writes_lists(turn, rendered) for turn in arranged[:_MOST_LEFT_OUT]):
                continue
            if not (left_out := _count_left_out(turns, rendered)):
                return rendered
            written.append((left_out, rendered))
        if not written:
            assert refusal is not None
            raise refusal
        return min(written, key=lambda each: each[0])[1]

    def _apply(self, turns: Sequence[Turn], tools: _Definitions | None, open_answer: bool) -> str:
        import jinja2

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(turns),
                    tools=None if tools is None else [dict(tool) for tool in tools],
                    tokenize=False,
                    add_generation_prompt=open_answer,
                    **self.kwargs,
                )
            )
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = str(error).strip().rstrip(".")
            raise RequestError(
                f"the model's chat template refuses these messages ({reason}); change their roles or their order."
            ) from None


def _count_left_out(turns: Sequence[Turn], rendered: str) -> int:
    """Turns whose text a template leaves out, at most `_MOST_LEFT_OUT`: most are found where the one before them ends,
    and looking for each of many in all of a long text would take minutes."""
    count = place = 0
    for turn in turns:
        content = turn["content"].strip()
        if (found := rendered.find(content, place)) >= 0:
            place = found + len(content)
        elif content not in rendered and (count := count + 1) >= _MOST_LEFT_OUT:
            break
    return count


def _writes_lists(turn: Turn, rendered: str) -> bool:
    """Whether a template writes a list of parts as if it were a text, in Python's way or in JSON's."""
    return str(turn["content"])[:-2] in rendered or json.dumps(turn["content"], ensure_ascii=False)[:-2] in rendered


def _in_parts(turn: Turn) -> Turn:
    return turn | {"content": [{"type": "text", "text": turn["content"]}]}


@dataclass(frozen=True)
class _Layout:
    """Turns and tools as the chat template gets them, and the format of calls that it teaches the model."""

    template: _ChatTemplate
    turns: list[Turn]
    tools: _Definitions | None
    calls: ToolFormat


def _choose_layout(
    tokenizer: Any, messages: Sequence[Mapping[str, object]], system: str | None, options: RenderOptions
) -> _Layout:
    turns = validate_messages(messages)
    if system is not None:
        turns = [{"role": "system", "content": system}, *turns]
    if not tokenizer.chat_template:
        raise TemplateError(
            "the model's tokenizer has no chat template, so messages cannot become text; send the text "
            "itself to /v1/completions, or use `foreword generate`."
        )
    kwargs = options.get("template_kwargs") or {}
    if reserved := sorted(_RESERVED_KWARGS & set(kwargs)):
        raise RequestError(f"chat_template_kwargs must not hold {reserved[0]}; send it as an option, or leave it out.")
    template = _ChatTemplate(tokenizer, kwargs)
    tools = [tool.definition for tool in parse_tools(options.get("tools"))]
    if not tools and not any(_has_calls(turn) for turn in turns):
        return _Layout(template, turns, None, HERMES)
    marked_turns, marked_tools, marks = _marked(turns, tools)
    refusal = None
    for arrange, calls in _arrangements(template, bool(tools)):
        try:
            proof = template.render(*arrange(marked_turns, marked_tools), True)
        except RequestError as error:
            refusal = refusal or error
            continue
        if set(marks) <= set(_MARK.findall(proof)):
            return _Layout(template, *arrange(turns, tools), calls)
    raise refusal or RequestError(
        "the model's chat template leaves tools, or what they returned, out of these messages; tell it in a user turn."
    )


_Arrange = Callable[[Sequence[Turn], _Definitions], tuple[list[Turn], _Definitions | None]]


def _arrangements(template: _ChatTemplate, tools: bool) -> Iterator[tuple[_Arrange, ToolFormat]]:
    """Ways to put tools and calls to the template, the model's own first."""
    own = _own_format(template)
    if own is not None or not tools:
        yield lambda turns, tools: (list(turns), tools or None), own or HERMES
        yield lambda turns, tools: (_short_ids(turns), tools or None), own or HERMES
    yield lambda turns, tools: (tool_turns.in_system_turn(tool_turns.as_text(turns), tools), None), HERMES
    yield lambda turns, tools: (tool_turns.in_user_turn(tool_turns.as_text(turns), tools), None), HERMES


def _own_format(template: _ChatTemplate) -> ToolFormat | None:
    """The format in which the template itself writes a call, if it is one that can be read."""
    definition = {"name": "probe", "description": "", "parameters": {"type": "object", "properties": {}}}
    try:
        return written_format(
            "probe", template.render(_PROBE_TURNS, [{"type": "function", "function": definition}], False)
        )
    except RequestError:
        return None


def _has_calls(turn: Turn) -> bool:
    return turn["role"] == "tool" or "tool_calls" in turn


def _marked(turns: Sequence[Turn], tools: _Definitions) -> tuple[list[Turn], _Definitions, list[str]]:
    """Turns and tools with a mark for every name, argument and result of a tool, and the marks."""
    marks: list[str] = []

    def mark() -> str:
        marks.append(f"mark{len(marks):08d}")
        return marks[-1]

    def marked_call(call: Mapping[str, Any]) -> dict[str, Any]:
        return {**call, "function": {"name": mark(), "arguments": {mark(): mark()}}}

    def marked_turn(turn: Turn) -> Turn:
        if turn["role"] == "tool":
            return turn | {"content": mark()}
        if "tool_calls" in turn:
            return turn | {"tool_calls": [marked_call(call) for call in turn["tool_calls"]]}
        return turn

    marked_tools = [{**tool, "function": {**tool["function"], "name": mark()}} for tool in tools]
    return [marked_turn(turn) for turn in turns], marked_tools, marks


def _short_ids(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with nine letters and digits for every id of a call: Mistral's templates take no others."""

    def short(call_id: str) -> str:
        return call_id if len(call_id) == 9 and call_id.isalnum() else sha256(call_id.encode()).hexdigest()[:9]

    def shortened(turn: Turn) -> Turn:
        if "tool_call_id" in turn:
            turn = turn | {"tool_call_id": short(turn["tool_call_id"])}
        if "tool_calls" in turn:
            calls = [call | {"id": short(call["id"])} if "id" in call else call for call in turn["tool_calls"]]
            turn = turn | {"tool_calls": calls}
        return turn

    return [shortened(turn) for turn in turns]
