"""`Figures`: how fast an answer came, and how much of its prompt did not have to be run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foreword.engine.protocol import Chunk, Stream


@dataclass(frozen=True)
class Figures:
    """Of one answer, or of several together.

    Attributes:
        answers: how many.
        prompt_tokens: all positions in front of them, prefixes included.
        cached_tokens: how many of those did not have to be run.
        tokens: of the answers.
        waited: seconds to the first tokens.
        followed: tokens behind the first ones.
        seconds: that those took.
    """

    answers: int
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    waited: float
    followed: int
    seconds: float

    @classmethod
    def together(cls, parts: Sequence[Figures]) -> Figures:
        names = cls.__dataclass_fields__
        return cls(**{name: sum(getattr(part, name) for part in parts) for name in names})

    def __str__(self) -> str:
        """Such as ``first token after 85 ms, 21.4 tokens/s, 64 tokens, 1021 of 1043 prompt tokens cached``."""
        wait = self.waited / self.answers
        first = f"first token after {wait * 1000:.0f} ms" if wait < 1 else f"first token after {wait:.1f} s"
        rate = [f"{self.followed / self.seconds:.1f} tokens/s"] if self.seconds > 0 else []
        cached = f"{self.cached_tokens} of {self.prompt_tokens} prompt tokens cached"
        return ", ".join([first, *rate, f"{self.tokens} tokens", cached])


@dataclass
class Meter:
    """Times one answer while it comes; make it right before the request is submitted."""

    started: float = field(default_factory=time.perf_counter)
    _first: float | None = None
    _last: float = 0.0
    _at_first: int = 0
    _tokens: int = 0

    def take(self, chunk: Chunk) -> None:
        """A chunk has arrived now."""
        if not chunk.token_ids:
            return
        self._last = time.perf_counter()
        self._tokens += len(chunk.token_ids)
        if self._first is None:
            self._first, self._at_first = self._last, self._tokens

    def figures(self, stream: Stream) -> Figures | None:
        """Of the answer as far as it came; ``None`` if nothing did."""
        if self._first is None:
            return None
        request = stream.request
        return Figures(
            answers=1,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.prefix_length + stream.cached_tokens,
            tokens=self._tokens,
            waited=self._first - self.started,
            followed=self._tokens - self._at_first,
            seconds=self._last - self._first,
        )
