"""Token ids back to text while they arrive: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"


class Detokenizer:
    """Text of a growing answer.

    Args:
        tokenizer: decodes ids; special tokens are left out.
        stop: texts that end the answer.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._start = 0  # tokens before it are decoded for good
        self._given = 0  # characters of the window that were released
        self._held = ""  # released only once it cannot be the beginning of a stop text
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Text that has become certain with this token; sets `stopped` when a stop text is complete."""
        self._ids.append(token_id)
        window = self._decode(self._ids[self._start :])
        if window.endswith(UNFINISHED):
            return ""
        fresh = window[self._given :]
        self._given = len(window)
        # Keep a few tokens of context: decoders join spaces and bytes across tokens.
        if len(self._ids) - self._start > 16:
            self._start = len(self._ids) - 8
            self._given = len(self._decode(self._ids[self._start :]))
        return self._release(fresh)

    def finish(self) -> str:
        """What was held back, once the answer has ended for another reason than a stop text."""
        if self.stopped:
            return ""
        rest = self._decode(self._ids[self._start :])[self._given :]
        return self._release(rest) + self._drain()

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _drain(self) -> str:
        held, self._held = self._held, ""
        return held

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        ends = [text.find(stop) for stop in self._stop if stop in text]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
