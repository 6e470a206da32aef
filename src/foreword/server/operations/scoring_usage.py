"""`ScoringUsage`: what a request that is scored, and writes nothing, has used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foreword.server.operations.auth import Caller
from foreword.server.operations.metrics import Metrics
from foreword.text.request import Prompt


class ScoringUsage:
    """Counts prompts as they are about to be scored, and charges the caller.

    Args:
        metrics: gets the tokens.
        task: the label that they go under.
        caller: is charged.
        note: the request's line in the log.
    """

    def __init__(self, metrics: Metrics, task: str, caller: Caller, note: dict[str, Any]) -> None:
        self._metrics, self._task, self._caller, self._note = metrics, task, caller, note
        self._prompt = self._cached = 0

    def __call__(self, prompts: Sequence[Prompt]) -> None:
        self._cached = sum(prompt.prefix_length for prompt in prompts)
        self._prompt = self._cached + sum(len(prompt.token_ids) for prompt in prompts)
        self._metrics.used(self._task, self._prompt, self._cached, 0)
        self._caller.charge(self._prompt)
        self._note.update(model=self._task, prompt_tokens=self._prompt, cached_tokens=self._cached)

    def usage(self) -> dict[str, Any]:
        """As OpenAI's endpoints that write nothing have it."""
        details = {"cached_tokens": self._cached}
        return {"prompt_tokens": self._prompt, "total_tokens": self._prompt, "prompt_tokens_details": details}
