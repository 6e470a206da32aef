"""Tools and their calls as ordinary turns, in Hermes' format, for chat templates that do not know them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from foreword.text.messages import Turn

_SIGNATURES = """You can call functions. Their signatures stand between <tools> and </tools>, one JSON object a line:
<tools>
{signatures}
</tools>
To call a function, write its name and its arguments as one JSON object between <tool_call> and </tool_call>:
<tool_call>
{{"name": "function-name", "arguments": {{"argument": "value"}}}}
</tool_call>
What a function returns comes back between <tool_response> and </tool_response>."""


def signatures(tools: Iterable[Mapping[str, Any]]) -> str:
    """The text that tells a model which functions there are, and how to call them."""
    return _SIGNATURES.format(signatures="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))


def in_system_turn(turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """The turns with the signatures behind the text of the first system turn, or in one of their own."""
    if not tools:
        return list(turns)
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": signatures(tools)}, *turns]
    return [turns[0] | {"content": f"{turns[0]['content']}\n\n{signatures(tools)}"}, *turns[1:]]


def in_user_turn(turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """The turns with the signatures in front of the text of the first user turn; as they are if there is none."""
    first = next((index for index, turn in enumerate(turns) if turn["role"] == "user"), None)
    if not tools or first is None:
        return list(turns)
    turn = turns[first] | {"content": f"{signatures(tools)}\n\n{turns[first]['content']}"}
    return [*turns[:first], turn, *turns[first + 1 :]]


def as_text(turns: Sequence[Turn]) -> list[Turn]:
    """The turns with calls as text of the assistant, and what tools returned as turns of the user."""
    found: list[Turn] = []
    returned = False
    for turn in turns:
        if turn["role"] == "tool":
            response = f"<tool_response>\n{turn['content']}\n</tool_response>"
            if returned:  # of several calls of one turn
                found[-1]["content"] += f"\n{response}"
            else:
                found.append({"role": "user", "content": response})
        else:
            found.append(_calls_as_text(turn))
        returned = turn["role"] == "tool"
    return found


def _calls_as_text(turn: Turn) -> Turn:
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in turn.get("tool_calls", ())
    ]
    bare = {key: value for key, value in turn.items() if key != "tool_calls"}
    return bare | {"content": "\n".join(filter(None, [turn["content"], *calls]))}
