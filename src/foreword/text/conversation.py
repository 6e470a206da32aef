"""`Conversation`: a row of messages, as OpenAI, ShareGPT, TRL and ChatGLM write them.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}      OpenAI, and TRL
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}          ShareGPT
    {"prompt": [messages], "completion": [messages]}                                                 TRL
    {"prompt": "...", "response": "...", "history": [["question", "answer"]]}                        ChatGLM

Training and evaluation read conversations here; the chat template makes text of them (`foreword.text.chat`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from foreword.core.json_reader import parse_json
from foreword.errors import DataError
from foreword.text.messages import validate_messages
from foreword.text.tools import parse_tools

LearnTurns = Literal["all", "last"]
Message = Mapping[str, Any]

_SPEAKERS = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    "function_call": "function_call",
    **dict.fromkeys(("tool", "function", "function_response", "observation"), "tool"),
}


@dataclass(frozen=True)
class Conversation:
    """Messages, and which of them are answers to learn or to measure.

    Attributes:
        messages: as `foreword.text.messages.validate_messages` gives them.
        answers: indices of the assistant's messages, in order; never empty. A message that nothing stands in front of
            is none of them: nobody asks for it.
        tools: that the assistant may call, in OpenAI's shape; empty if there are none.
    """

    messages: tuple[Message, ...]
    answers: tuple[int, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, values: Mapping[str, Any], learn_turns: LearnTurns = "all") -> Conversation:
        """The conversation of a row.

        Args:
            values: the row's fields.
            learn_turns: every turn of the assistant, or its last one.

        Raises DataError or RequestError that names the message.
        """
        found = [name for name, of_format in _FORMATS.items() if of_format.fits(values)]
        if not found:
            has = ", ".join(map(str, values)) or "no fields"
            raise DataError(f"the row holds no conversation (it has: {has}); write it as messages, as the first row.")
        if len(found) > 1:
            raise DataError(f"the row mixes {' and '.join(found)}; keep one of them.")
        if values.get("chat_template_kwargs"):
            raise DataError("chat_template_kwargs is not learned with, since no request would send it; take it out.")
        conversation = _FORMATS[found[0]].read(values)
        conversation = replace(conversation, tools=_tools(values.get("tools")))
        return conversation._with_answers(learn_turns)

    @property
    def history_text(self) -> str:
        """Everything before the last answer, a line a message, for people to read."""
        history = self.before(self.answers[-1])
        return "\n".join(f"{message['role']}: {message['content'] or ''}" for message in history)

    def before(self, answer: int) -> tuple[Message, ...]:
        """The messages that an answer follows: the history that a request sends."""
        return self.messages[:answer]

    def _with_answers(self, learn_turns: LearnTurns) -> Conversation:
        """Checked, with only the answers that count. Raises DataError without one, or for an empty one."""
        if not self.answers:
            raise DataError("no turn of the assistant follows another message, so there is nothing to learn; add one.")
        for index in self.answers:
            message = self.messages[index]
            if not (str(message["content"] or "").strip() or message.get("tool_calls")):
                raise DataError(f"message {index + 1} is an empty turn of the assistant; write it, or take it out.")
        return self if learn_turns == "all" else replace(self, answers=self.answers[-1:])


@dataclass(frozen=True)
class _Format:
    """One way to write a conversation as a row."""

    fits: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any]], Conversation]


def is_conversation(values: Mapping[str, Any]) -> bool:
    """Whether a row holds a conversation, to be rendered by a chat template."""
    return any(of_format.fits(values) for of_format in _FORMATS.values())


def conversation_fields(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a row that hold its conversation."""
    return tuple(name for name in ("messages", "conversations", "prompt", "completion", "history") if name in values)


def is_prompt_completion(values: Mapping[str, Any]) -> bool:
    """Whether a row is TRL's pair of plain texts, which no chat template is put around."""
    return isinstance(values.get("prompt"), str) and isinstance(values.get("completion"), str)


def _read_messages(values: Mapping[str, Any]) -> Conversation:
    return _conversation(_with_system(values, _messages(values["messages"], "messages")))


def _read_sharegpt(values: Mapping[str, Any]) -> Conversation:
    return _conversation(_with_system(values, _messages(values["conversations"], "conversations")))


def _read_prompt_completion(values: Mapping[str, Any]) -> Conversation:
    prompt = _list(values["prompt"])
    completion = _list(values["completion"])
    if prompt is None or completion is None:
        raise DataError("prompt and completion are a text and a list of messages; write both as texts, or as lists.")
    asked = _with_system(values, _messages(prompt, "prompt"))
    conversation = _conversation([*asked, *_messages(completion, "completion")])
    # The completion alone is learned, as in TRL.
    return replace(conversation, answers=tuple(index for index in conversation.answers if index >= len(asked)))


def _read_history(values: Mapping[str, Any]) -> Conversation:
    history = _list(values["history"]) or []
    pairs = [*history, (values["prompt"], values["response"])]
    messages: list[Message] = []
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(f"pair {number} of history is not a question and its answer; write it as two texts.")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return _conversation(_with_system(values, messages))


_FORMATS = {
    "messages": _Format(lambda values: _list(values.get("messages")) is not None, _read_messages),
    "conversations": _Format(lambda values: _list(values.get("conversations")) is not None, _read_sharegpt),
    "prompt and completion": _Format(
        lambda values: (
            {"prompt", "completion"} <= set(values)
            and any(_list(values[name]) is not None for name in ("prompt", "completion"))
        ),
        _read_prompt_completion,
    ),
    "prompt, response and history": _Format(
        lambda values: {"prompt", "response", "history"} <= set(values), _read_history
    ),
}


def _with_system(values: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The messages behind the system turn that a row has as a field of its own. Raises DataError for a second one."""
    system = values.get("system")
    if not isinstance(system, str) or not system.strip():
        return messages
    if messages[0]["role"] == "system":
        raise DataError("the row has a system turn and a field system; keep one of them.")
    return [{"role": "system", "content": system}, *messages]


def _conversation(messages: Sequence[Message]) -> Conversation:
    answers = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index and _weight(message, index)
    ]
    return Conversation(tuple(validate_messages(messages)), tuple(answers))


def _weight(message: Message, index: int) -> bool:
    """Whether a message is learned, as in OpenAI's files for fine-tuning."""
    if (weight := message.get("weight", 1)) not in (0, 1):
        raise DataError(f"messages[{index}]: weight is {weight!r}; write 1 to learn it, or 0.")
    return bool(weight)


def _messages(value: Any, field: str) -> list[Message]:
    """Messages with a ``role`` each, to be checked. Raises DataError where nobody speaks."""
    messages = _list(value)
    if not messages:
        raise DataError(f"{field} is empty; write at least a user's and an assistant's turn.")
    read: list[Message] = []
    for index, message in enumerate(messages):
        where = f"{field}[{index}]"
        if not isinstance(message, Mapping):
            raise DataError(
                f'{where} is of the type {type(message).__name__}; write {{"role": "user", "content": "..."}}.'
            )
        read.append(_without_nulls(message))
        if not {"role", "from"} & set(read[-1]):
            has = ", ".join(map(str, message)) or "nothing"
            raise DataError(f"{where} says not who speaks (it has: {has}); give it a role, such as user.")
        if ("role" in read[-1]) != ("role" in read[0]):
            raise DataError(f"{field} mixes role and content with from and value; keep one of them.")
    return [_openai(message, f"{field}[{index}]") for index, message in enumerate(read)]


def _openai(message: Message, where: str) -> Message:
    """A message of ShareGPT in OpenAI's shape; others as they are."""
    if "role" in message:
        return {"content": "", **message}
    speaker = _SPEAKERS.get(str(message["from"]).lower())
    if speaker is None:
        raise DataError(f"{where} is from {message['from']!r}; use one of {', '.join(_SPEAKERS)}.")
    text, weight = message.get("value", ""), {"weight": message["weight"]} if "weight" in message else {}
    if speaker != "function_call":
        return {"role": speaker, "content": text, **weight}
    calls = _parsed(text) if isinstance(text, str) else text
    calls = calls if isinstance(calls, list) else [calls]
    return {"role": "assistant", "content": "", "tool_calls": [{"function": call} for call in calls], **weight}


def _tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    if value is None or value == "":
        return ()
    listed = _list(value)
    tools = listed if listed is None else [_without_nulls(tool) for tool in listed]
    if tools is not None:
        tools = [tool if not isinstance(tool, Mapping) or "function" in tool else {"function": tool} for tool in tools]
    return tuple(tool.definition for tool in parse_tools(value if tools is None else tools))


def _without_nulls(value: Any) -> Any:
    """Without the keys that Parquet fills in where another row has them."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _list(value: Any) -> list[Any] | None:
    """A list, or the list that a cell of a CSV file holds as JSON; ``None`` for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _parsed(value)
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, list) else None


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None
