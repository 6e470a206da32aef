"""An answer, piece by piece, told apart into text and calls of tools."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from foreword.text.tool_formats import ToolFormat
from foreword.text.tools import ToolCall


@dataclass(frozen=True)
class TextDelta:
    """More text of the answer."""

    text: str


@dataclass(frozen=True)
class CallDelta:
    """A call, or more of one.

    Attributes:
        index: which call of the answer, from 0.
        name: of the function; where it is set a call begins.
        arguments: more of the JSON text of the arguments.
    """

    index: int
    name: str | None
    arguments: str


AnswerDelta = TextDelta | CallDelta


class ToolReader(Protocol):
    """Reads one answer. No piece of a mark of a call ever comes out as text."""

    def push(self, text: str) -> list[AnswerDelta]:
        """What has become certain with more text of the answer."""
        ...

    def finish(self) -> list[AnswerDelta]:
        """What was held back, at the end of the answer."""
        ...


MAX_ENDS = 64
"""Texts that end a call may stand in its arguments; so many are tried, else an answer of nothing else takes minutes."""


class FreeToolReader:
    """Of an answer in which the model chooses whether to call, by the format of its family.

    Whole calls come out. What begins as a call and is none (broken JSON, an unknown name) stays text.

    Args:
        calls: format of the calls.
        names: of the functions that are offered.
        parallel: False for at most one call; later ones are left out.
    """

    def __init__(self, calls: ToolFormat, names: Iterable[str], parallel: bool = True) -> None:
        self._format, self._names, self._parallel = calls, frozenset(names), parallel
        self._held = ""  # behind everything that came out
        self._space = ""  # at the end of a text, left out if a call follows
        self._empty = True  # nothing but white space so far
        self._tried: list[int] = []  # places behind the ends of the first call that were tried
        self._count = 0

    def push(self, text: str) -> list[AnswerDelta]:
        self._held += text
        return self._advance(final=False)

    def finish(self) -> list[AnswerDelta]:
        found = self._advance(final=True)
        return found if self._count else [*found, *([TextDelta(self._space)] if self._space else [])]

    def _advance(self, final: bool) -> list[AnswerDelta]:
        if self._format.whole_answer and self._empty and self._held.lstrip()[:1] in ("{", ""):
            if not final:
                return []
            if (calls := self._read(self._held)) is not None:
                return self._calls(calls)
        found: list[AnswerDelta] = []
        while (place := self._first_mark()) is not None:
            begin, mark = place
            found += self._text(self._held[:begin])
            self._held = self._held[begin:]
            if (end := self._first_call(len(mark), final)) is None:
                return found
            calls, length = end
            self._tried = []
            found += self._text(self._held[:length]) if calls is None else self._calls(calls)
            self._held = self._held[length:]
        keep = 0 if final else max(_overlap(self._held, mark) for mark in self._format.marks)
        found += self._text(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return found

    def _first_mark(self) -> tuple[int, str] | None:
        places = [(self._held.find(mark), mark) for mark in self._format.marks if mark in self._held]
        return min(places, default=None)

    def _first_call(self, begin: int, final: bool) -> tuple[list[ToolCall] | None, int] | None:
        """The calls behind the mark that the held text begins with, or ``None`` for text, and where they end.

        ``None`` alone while it is not certain. The text that ends a call may be part of an argument, so a longer one is
        tried until the answer ends.
        """
        end = self._format.end
        while end is not None and (at := self._held.find(end, max(begin, *self._tried[-1:], 0))) >= 0:
            if len(self._tried) == MAX_ENDS:
                break
            self._tried.append(at + 1)
            if (calls := self._read(self._held[begin:at])) is not None:
                return calls, at + len(end)
        first = self._tried[0] - 1 if self._tried else -1
        if not final and len(self._tried) < MAX_ENDS:
            return None
        if final and (calls := self._read(self._held[begin:])) is not None:
            return calls, len(self._held)
        return None, begin if first < 0 or end is None else first + len(end)

    def _read(self, text: str) -> list[ToolCall] | None:
        try:
            calls = self._format.parse(text)
        except (ValueError, RecursionError):
            return None
        return calls if all(call.name in self._names for call in calls) else None

    def _calls(self, calls: list[ToolCall]) -> list[AnswerDelta]:
        self._empty, self._space = False, ""
        kept = calls if self._parallel else calls[: 1 - min(self._count, 1)]
        found = [CallDelta(self._count + index, call.name, call.arguments) for index, call in enumerate(kept)]
        self._count += len(kept)
        return list(found)

    def _text(self, text: str) -> list[AnswerDelta]:
        text = self._space + text
        bare = text.rstrip()
        self._space = text[len(bare) :]
        self._empty = self._empty and not bare
        return [TextDelta(bare)] if bare else []


class NamedToolReader:
    """Of an answer that is the arguments of one function, as a constraint has it."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def push(self, text: str) -> list[AnswerDelta]:
        name, self._name = self._name, None
        return [CallDelta(0, name, text)] if text or name else []

    def finish(self) -> list[AnswerDelta]:
        return self.push("") if self._name else []


class ToolListReader:
    """Of an answer that is a JSON list of ``{"name", "arguments"}``, as a constraint has it; anything else is text."""

    _HEAD = re.compile(r'[\s\[\],}]*\{\s*"name"\s*:\s*"([\w.:-]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')

    def __init__(self) -> None:
        self._held = ""  # between the arguments of two calls
        self._is_text: bool | None = None
        self._index = -1
        self._depth = 0  # of braces in the arguments; 0 outside
        self._in_string = self._escaped = False

    def push(self, text: str) -> list[AnswerDelta]:
        self._held += text
        if self._is_text is None and self._held.strip():
            self._is_text = self._held.lstrip()[0] != "["
        if self._is_text:
            text, self._held = self._held, ""
            return [TextDelta(text)] if text else []
        found: list[AnswerDelta] = []
        while self._held:
            if self._depth:
                found.append(CallDelta(self._index, None, self._take_arguments()))
            elif (head := self._HEAD.match(self._held)) is not None:
                self._index += 1
                self._depth, start = 1, head.end() + 1
                found.append(CallDelta(self._index, head[1], "{"))
                self._held = self._held[start:]
            else:
                break
        return found

    def finish(self) -> list[AnswerDelta]:
        return []

    def _take_arguments(self) -> str:
        """Remove from the held text what belongs to the arguments."""
        for place, char in enumerate(self._held):
            if self._in_string:
                if self._escaped or char == "\\":
                    self._escaped = not self._escaped
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            else:
                self._depth += (char == "{") - (char == "}")
                if not self._depth:
                    taken, self._held = self._held[: place + 1], self._held[place + 1 :]
                    return taken
        taken, self._held = self._held, ""
        return taken


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of ``text`` that begins ``mark``."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
