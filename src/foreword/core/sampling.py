"""`SamplingParams`: how a request is answered."""

from __future__ import annotations

from dataclasses import dataclass

from foreword.errors import UsageError


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token, and when to stop.

    Attributes:
        max_tokens: tokens to generate at most.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: keep the smallest set of tokens with at least this probability mass, ``0 < top_p <= 1``.
        top_k: keep the ``k`` most probable tokens; 0 keeps all.
        seed: makes a sampled answer repeatable whatever else is in the batch; ``None`` draws one.
        stop: texts that end the answer; they are not part of it.
        stop_token_ids: token ids that end the answer, besides the model's own end-of-text tokens.
        ignore_eos: go on past the model's end-of-text tokens.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if not 0.0 <= self.temperature <= 100.0:
            raise UsageError(f"temperature must be between 0 and 100, got {self.temperature}.")
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.top_k < 0:
            raise UsageError(f"top_k must be 0 (off) or more, got {self.top_k}.")
        if any(not text for text in self.stop):
            raise UsageError("a stop text is empty; leave it out.")
