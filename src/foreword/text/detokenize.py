"""`Detokenizer`: generated token ids -> text, token by token: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT_CHARACTER = "\ufffd"


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
        self._stop = tuple(stop)
        self._left = min_tokens  # tokens until a stop text counts
        self._window: list[int] = []  # the last tokens that were released, and those that were not
        self._released = 0  # tokens of the window
        self._given = 0  # characters of the window that were released
        self._held = ""  # released only once it cannot be the beginning of a stop text
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Text that has become certain with this token; sets `stopped` when a stop text is complete."""
        self._window.append(token_id)
        self._left -= 1
        text = self._decode(self._window)
        if len(text) <= self._given or text.endswith(REPLACEMENT_CHARACTER):
            return ""
        fresh = text[self._given :]
        # Decoders join spaces and bytes across tokens, so one released piece stays for context; the window must
        # begin where a character does, or a decoder of single bytes would make no sense of what follows.
        del self._window[: self._released]
        self._released = len(self._window)
        self._given = len(self._decode(self._window))
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
        ends = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0 and self._left < 0]
        if ends:
            self.stopped = True
            self._held = ""
            # Whichever was complete first, as if the text had come a character at a time and not in tokens.
            end, begin = min(ends)
            return text[: end if self._include_stop else begin]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def special_token_id(tokenizer: Any, text: str) -> int | None:
    """The id of the special token that a text is; ``None`` if it is ordinary text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    token = backend.token_to_id(text) if backend is not None else None
    return token if token is not None and not tokenizer.decode([token], skip_special_tokens=True) else None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
