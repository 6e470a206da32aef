"""`Detokenizer`: generated token ids -> text, token by token: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foreword.text.stop_text import StopText

REPLACEMENT_CHARACTER = "\ufffd"

_MAX_PENDING, _KEPT_TOKENS, _KEPT_CHARACTERS = 64, 32, 4
"""Tokens that may wait for the end of a character, which none does, and what is kept of more: bytes of a character."""
_MAX_SILENT = 8
"""Tokens without text that are kept for what they may do to the next ones."""


class Detokenizer:
    """Incremental detokenizer of one generated answer.

    Args:
        tokenizer: decodes ids.
        stop: texts that end the answer.
        min_tokens: a stop text that is complete within so many tokens does not end the answer.
        skip_special_tokens: leave special tokens out.
        include_stop: leave the stop text at the end of the answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        *,
        skip_special_tokens: bool = True,
        include_stop: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens, self._include_stop = skip_special_tokens, include_stop
        self._stop = [StopText(text) for text in stop]
        self._left = min_tokens  # tokens until a stop text counts
        self._window: list[int] = []  # the last tokens that were released, and those that were not
        self._released = 0  # tokens of the window
        self._given = 0  # characters of the window that were released
        self._last = ""  # text of the window
        self._silent = 0  # tokens at its end that added nothing
        self._held = ""  # released only once it cannot be the beginning of a stop text
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Text that has become certain with this token; sets `stopped` when a stop text is complete."""
        self._left -= 1
        self._window.append(token_id)
        text = self._decode(self._window)
        self._silent = self._silent + 1 if text == self._last else 0
        if self._silent > _MAX_SILENT:
            self._window.pop()
            return ""
        self._last = text
        if len(text) <= self._given or text.endswith(REPLACEMENT_CHARACTER):
            return self._give_up(text) if len(self._window) - self._released > _MAX_PENDING else ""
        fresh = text[self._given :]
        # Decoders join spaces and bytes across tokens, so one released piece stays for context; the window must
        # begin where a character does, or a decoder of single bytes would make no sense of what follows.
        del self._window[: self._released]
        self._released = len(self._window)
        self._last = self._decode(self._window)
        self._given = len(self._last)
        return self._release(fresh)

    def _give_up(self, text: str) -> str:
        """Release tokens that will be no character; else all of them would be decoded again with every further one."""
        kept = self._window[-_KEPT_TOKENS:]
        ending = self._decode(kept)
        certain = max(self._given, len(text) - _KEPT_CHARACTERS)
        if not ending.endswith(text[certain:]):
            return ""
        fresh = text[self._given : certain]
        self._window, self._released, self._last = kept, 0, ending
        self._given = len(ending) - (len(text) - certain)
        return self._release(fresh)

    def finish(self) -> str:
        """Flush the buffered text of an answer that ended for another reason than a stop text."""
        if self.stopped:
            return ""
        rest = self._release(self._decode(self._window)[self._given :])
        return rest if self.stopped else rest + self._drain()

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=self._skip_special_tokens, clean_up_tokenization_spaces=False
        )

    def _drain(self) -> str:
        held, self._held = self._held, ""
        return held

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        found = [(end, stop.text) for stop in self._stop if (end := stop.push(fresh, ends=self._left < 0)) is not None]
        if found:
            self.stopped = True
            # Whichever was complete first, as if the text had come a character at a time and not in tokens.
            end, stop = min(found, key=lambda each: (each[0], -len(each[1])))
            end += len(self._held)
            self._held = ""
            return text[: end if self._include_stop else end - len(stop)]
        keep = max((stop.depth for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def special_token_id(tokenizer: Any, text: str) -> int | None:
    """The id of the special token that a text is; ``None`` if it is ordinary text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    token = backend.token_to_id(text) if backend is not None else None
    return token if token is not None and not tokenizer.decode([token], skip_special_tokens=True) else None
