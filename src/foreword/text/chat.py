"""Chat messages -> text and token ids, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from foreword.errors import RequestError, TemplateError, UnsupportedOption
from foreword.text import seam

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TOOL_CALL_KEYS = ("tool_calls", "function_call")
_OPTIONAL_KEYS = ("name", "tool_call_id")


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, object]],
    *,
    system: str | None = None,
    tools: Sequence[Mapping[str, object]] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The conversation as text, up to where the assistant begins to answer.

    Args:
        tokenizer: carries the chat template.
        messages: in OpenAI's shape, see `validate_messages`.
        system: a system turn to put in front; the template then leaves out its default one.

    Raises TemplateError if there is no chat template, RequestError if it refuses these messages.
    """
    import jinja2

    turns = validate_messages(messages)
    if system is not None:
        turns = [{"role": "system", "content": system}, *turns]
    if not tokenizer.chat_template:
        raise TemplateError(
            "the model's tokenizer has no chat template, so messages cannot become text; send the text "
            "itself to /v1/completions, or use `foreword generate`."
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except jinja2.TemplateError as error:
        reason = str(error).strip().rstrip(".")
        raise RequestError(
            f"the model's chat template refuses these messages ({reason}); change their roles or their order."
        ) from None


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


def validate_messages(messages: Sequence[Mapping[str, object]]) -> list[dict[str, str]]:
    """Check messages and reduce them to role and text, and what templates know besides (``name``, ``tool_call_id``).

    Content may be a string or OpenAI's list of text parts. ``developer`` is OpenAI's newer name of
    ``system``, which chat templates do not know. Raises RequestError for what is not a message,
    UnsupportedOption for images, audio and tool calls.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise RequestError("messages must be a non-empty list; send at least one with role 'user'.")
    return [_message(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _message(where: str, message: Mapping[str, object]) -> dict[str, str]:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in _ROLES:
        raise RequestError(f"{where}: role is {role!r}; use one of {', '.join(_ROLES)}.")
    for key in _TOOL_CALL_KEYS:
        if message.get(key):
            raise UnsupportedOption(f"{where}: {key} is not supported; send the call as text in content.")
    turn = {
        "role": "system" if role == "developer" else str(role),
        "content": _content(where, message.get("content")),
    }
    return turn | {key: str(message[key]) for key in _OPTIONAL_KEYS if message.get(key) is not None}


def _content(where: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        return "".join(_part(f"{where}.content[{index}]", part) for index, part in enumerate(content))
    raise RequestError(f"{where}: content must be a string or a non-empty list of text parts; send the text.")


def _part(where: str, part: object) -> str:
    if not isinstance(part, Mapping):
        raise RequestError(f'{where} must be an object; write {{"type": "text", "text": "..."}}.')
    if part.get("type") != "text":
        raise UnsupportedOption(f"{where}: parts of type {part.get('type')!r} are not supported; send only text.")
    text = part.get("text")
    if not isinstance(text, str):
        raise RequestError(f'{where}: text must be a string; write {{"type": "text", "text": "..."}}.')
    return text
