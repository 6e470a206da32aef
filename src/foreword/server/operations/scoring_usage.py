"""`ScoringUsage`: token counts of a request whose prompts are scored, and which generates nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foreword.engine.protocol import Sender
from foreword.server.operations.auth import Caller
from foreword.server.operations.metrics import Metrics
from foreword.text.prompt import Prompt


class ScoringUsage:
    """Called with the prompts that are about to be scored, it counts their tokens, and raises LimitReached if the
    caller has no more.

    Args:
        metrics: gets the token counts.
        task: their label in the metrics.
        caller: its limits count the tokens.
        log_fields: fields of the request's line in the access log.
    """

    def __init__(self, metrics: Metrics, task: str, caller: Caller, log_fields: dict[str, Any]) -> None:
        self._metrics, self._task, self._caller, self._log_fields = metrics, task, caller, log_fields
        self._prompt_tokens = self._cached_tokens = 0

    def __call__(self, prompts: Sequence[Prompt]) -> None:
        self._cached_tokens = sum(prompt.prefix_length for prompt in prompts)
        self._prompt_tokens = self._cached_tokens + sum(len(prompt.token_ids) for prompt in prompts)
        self._caller.count_tokens(self._prompt_tokens)
        self._metrics.count_tokens(self._task, self._prompt_tokens, self._cached_tokens, 0)
        self._log_fields.update(model=self._task, prompt_tokens=self._prompt_tokens, cached_tokens=self._cached_tokens)

    @property
    def sender(self) -> Sender:
        """Who asks, for the engine."""
        return self._caller.sender()

    def usage(self) -> dict[str, Any]:
        """OpenAI's ``usage`` of an endpoint that generates nothing."""
        return {
            "prompt_tokens": self._prompt_tokens,
            "total_tokens": self._prompt_tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens},
        }
