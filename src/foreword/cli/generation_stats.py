"""`GenerationStats`: latency, throughput and cached prompt tokens of answers; `GenerationTimer` measures them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foreword.engine.protocol import Chunk, Stream


@dataclass(frozen=True)
class GenerationStats:
    """Sums over one answer, or over several.

    Attributes:
        answers: how many there are.
        prompt_tokens: positions in front of the answers, prefixes included.
        cached_tokens: those of them that were cached.
        tokens: tokens of the answers.
        first_token_seconds: seconds to the first token.
        decoded_tokens: tokens behind those of the first chunk.
        decode_seconds: seconds that they took.
    """

    answers: int
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    first_token_seconds: float
    decoded_tokens: int
    decode_seconds: float

    @classmethod
    def total(cls, parts: Sequence[GenerationStats]) -> GenerationStats:
        return cls(*map(sum, zip(*map(astuple, parts), strict=True)))

    def __str__(self) -> str:
        """Such as ``first token after 85 ms, 21.4 tokens/s, 64 tokens, 1021 of 1043 prompt tokens cached``."""
        wait = self.first_token_seconds / self.answers
        first = f"first token after {wait * 1000:.0f} ms" if wait < 1 else f"first token after {wait:.1f} s"
        rate = [f"{self.decoded_tokens / self.decode_seconds:.1f} tokens/s"] if self.decode_seconds > 0 else []
        cached = f"{self.cached_tokens} of {self.prompt_tokens} prompt tokens cached"
        return ", ".join([first, *rate, f"{self.tokens} tokens", cached])


@dataclass
class GenerationTimer:
    """Measures one answer while it is streamed; create it just before the request is submitted."""

    started: float = field(default_factory=time.perf_counter)
    _first: float | None = None
    _last: float = 0.0
    _first_tokens: int = 0
    _tokens: int = 0

    def add(self, chunk: Chunk) -> None:
        """Record a chunk that has just arrived."""
        if not chunk.token_ids:
            return
        self._last = time.perf_counter()
        self._tokens += len(chunk.token_ids)
        if self._first is None:
            self._first, self._first_tokens = self._last, self._tokens

    def stats(self, stream: Stream) -> GenerationStats | None:
        """Statistics of the tokens so far; ``None`` if there are none."""
        if self._first is None:
            return None
        request = stream.request
        return GenerationStats(
            answers=1,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.prefix_length + stream.cached_tokens,
            tokens=self._tokens,
            first_token_seconds=self._first - self.started,
            decoded_tokens=self._tokens - self._first_tokens,
            decode_seconds=self._last - self._first,
        )
