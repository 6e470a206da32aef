"""`AssistantTurn`: what a chat template makes of one answer of a conversation, behind its history as it is served.

Training and evaluation take the tokens to learn and to measure from here. They are found by rendering the conversation
up to the answer, as a request does, and with the answer, and comparing: whatever a template adds, drops or rewrites is
seen, and what cannot be lined up is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from foreword.errors import DataError
from foreword.text import chat, seam
from foreword.text.conversation import Conversation, Message
from foreword.text.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Serve = Callable[[Sequence[Message], Sequence[Any]], Prompt]
"""Messages and tools -> the prompt of the request that they are."""


@dataclass(frozen=True, eq=False)
class AssistantTurn:
    """One answer in tokens.

    Attributes:
        prompt: everything before it, as a request sends it.
        token_ids: of the answer; the last one ends the turn.
    """

    prompt: Prompt
    token_ids: tuple[int, ...]


def bare_request(tokenizer: PreTrainedTokenizerBase, *, bos: bool = True) -> Serve:
    """A history as a request without a prefix, or behind one that begins the text already (``bos=False``)."""

    def serve(messages: Sequence[Message], tools: Sequence[Any]) -> Prompt:
        rendered = chat.render(tokenizer, messages, tools=list(tools) or None)
        return Prompt(tuple(chat.encode(tokenizer, rendered, bos=bos)), None, 0)

    return serve


def assistant_turns(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, serve: Serve
) -> list[AssistantTurn]:
    """The answers of a conversation, in order.

    Args:
        serve: makes the prompt of a history.

    Raises DataError for an answer that the chat template does not render so that it can be learned, TemplateError
    without a chat template, RequestError for messages that the template refuses.
    """
    turns = []
    for answer in conversation.answers:
        history = conversation.before(answer)
        tools = list(conversation.tools) or None
        before = chat.render(tokenizer, history, tools=tools)
        whole = chat.render(tokenizer, conversation.messages[: answer + 1], tools=tools, add_generation_prompt=False)
        where = f"message {answer + 1}"
        message = conversation.messages[answer]
        _check_rendered(message, before, whole, where)
        whole = before + _without_closing_text(tokenizer, message, whole[len(before) :])
        prompt = serve(history, conversation.tools)
        turns.append(AssistantTurn(prompt, _answer_ids(tokenizer, before, whole, where)))
    return turns


def join_turns(turns: Sequence[AssistantTurn]) -> list[Prompt]:
    """As few prompts as hold all turns, with their answers inside: ``output_indices`` are where a token of one is next.

    One prompt holds a whole conversation if its history is rendered as it was answered. Where a template renders an
    older answer otherwise (many drop its reasoning), the next turn begins a prompt of its own.
    """
    joined: list[Prompt] = []
    for turn in turns:
        prompt, start = turn.prompt, len(turn.prompt.token_ids) - 1
        indices = tuple(range(start, start + len(turn.token_ids)))
        ids = (*prompt.token_ids, *turn.token_ids)
        if joined and _continues(prompt, joined[-1]):
            indices = (*joined.pop().output_indices, *indices)
        joined.append(replace(prompt, token_ids=ids, output_indices=indices))
    return joined


def _continues(prompt: Prompt, earlier: Prompt) -> bool:
    same_front = prompt.prefix is earlier.prefix and prompt.prefix_length == earlier.prefix_length
    return same_front and prompt.token_ids[: len(earlier.token_ids)] == earlier.token_ids


def _check_rendered(message: Message, before: str, whole: str, where: str) -> None:
    """Raise DataError unless the rendered answer follows the rendered history, and is all there."""
    if not whole.startswith(before):
        at = seam.common_prefix_length(before, whole)
        raise DataError(
            f"{where} cannot be lined up: the chat template asks for an answer with {before[at:][-30:]!r}, and renders "
            f"it behind {whole[at:][:30]!r}; learn with a model whose template renders answers as it asks for them."
        )
    rendered = "".join(whole[len(before) :].split())
    wanted = [*_said(str(message.get("content") or "")), str(message.get("reasoning_content") or "")]
    wanted += [call["function"]["name"] for call in message.get("tool_calls") or ()]
    # Templates put reasoning in lines of its own, so white space is not compared.
    wanted = ["".join(text.split()) for text in wanted]
    if missing := next((text for text in wanted if text not in rendered), None):
        raise DataError(
            f"{where} cannot be learned: the chat template leaves out {len(missing)} characters; take them "
            "out of the row, or use a model whose template renders them."
        )


def _said(content: str) -> list[str]:
    """The text of an answer; its reasoning and the rest apart, since templates may write the tags between anew."""
    if "</think>" not in content:
        return [content]
    thought, _, rest = content.partition("</think>")
    return [thought.replace("<think>", ""), rest]


def _without_closing_text(tokenizer: PreTrainedTokenizerBase, message: Message, rendered: str) -> str:
    """A rendered answer without text that a template puts behind it: only a special token can end a turn."""
    content = str(message.get("content") or "").strip()
    # The answer "n" is not the one in <|im_end|>.
    at = _hide_special_tokens(tokenizer, rendered).rfind(content)
    if not content or at < 0 or message.get("tool_calls"):
        return rendered
    end = at + len(content)
    closing = seam.encode(tokenizer, rendered[end:].strip(), bos=False)
    return rendered if not closing or closing[0] in _special_ids(tokenizer) else rendered[:end]


def _hide_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text of the same length with NUL in place of its special tokens."""
    for token_id in _special_ids(tokenizer):
        token = str(tokenizer.convert_ids_to_tokens(token_id))
        text = text.replace(token, "\0" * len(token))
    return text


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = tokenizer.added_tokens_decoder
    return {*tokenizer.all_special_ids, *(token_id for token_id, token in added.items() if token.special)}


def _answer_ids(tokenizer: PreTrainedTokenizerBase, before: str, whole: str, where: str) -> tuple[int, ...]:
    """Tokens of an answer up to the one that ends its turn."""
    head = seam.encode(tokenizer, before, bos=False)
    ids = seam.encode(tokenizer, whole, bos=False)
    if ids[: len(head)] != head:
        raise DataError(
            f"{where} cannot be lined up: {whole[len(before) :][:20]!r} merges with the text before it into other "
            "tokens; take white space off its beginning."
        )
    answer = ids[len(head) :]
    special = _special_ids(tokenizer)
    last = len(answer)
    while last and (answer[last - 1] in special or not str(tokenizer.decode([answer[last - 1]])).strip()):
        last -= 1
    ends = next((index for index in range(last, len(answer)) if answer[index] in special), None)
    if ends is not None:
        answer = answer[: ends + 1]
    elif tokenizer.eos_token_id is not None:
        answer = [*answer[:last], tokenizer.eos_token_id]
    else:
        raise DataError(f"{where} has no end: the chat template closes no turn and the model has no end-of-text token.")
    if answer[-1] in answer[:-1]:
        end = tokenizer.decode([answer[-1]])
        raise DataError(f"{where} holds {end!r}, which ends an answer; take it out of the text.")
    return tuple(answer)
