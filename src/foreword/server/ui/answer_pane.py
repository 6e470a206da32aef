"""`AnswerPane`: one model's answer beside the others, and `compare`, which fills several at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

REFRESH = 0.1
"""Seconds between two looks at answers on their way: quick enough to read along, and no load for a browser."""


@dataclass(frozen=True)
class AnswerPane:
    """What is known of an answer so far.

    Attributes:
        model: the base model's name or a task's, as it was asked.
        ref: ``task@version`` that answers, or the base model; empty until it is known.
        text: so far.
        error: why there is no more, as a sentence.
        first: seconds from the request to the first piece of text.
        last: seconds from the request to the last.
        prompt_tokens, cached_tokens, completion_tokens: known at the end.
        done: nothing more comes.
    """

    model: str
    ref: str = ""
    text: str = ""
    error: str | None = None
    first: float | None = None
    last: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    done: bool = False

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens behind the first; ``None`` where there is nothing to divide."""
        if self.first is None or self.last is None or self.completion_tokens is None:
            return None
        seconds = self.last - self.first
        return (self.completion_tokens - 1) / seconds if self.completion_tokens > 1 and seconds > 0 else None


async def compare(
    models: Sequence[str], ask: Callable[[str], AsyncIterator[AnswerPane]]
) -> AsyncIterator[tuple[AnswerPane, ...]]:
    """Ask all models at once and yield all columns, again and again until all are done.

    Args:
        ask: one model's column, again and again as it grows.
    """
    columns = {model: AnswerPane(model) for model in models}

    async def fill(model: str) -> None:
        async for column in ask(model):
            columns[model] = column

    filling = [asyncio.create_task(fill(model)) for model in columns]
    left = set(filling)
    try:
        yield tuple(columns.values())
        while left:
            _, left = await asyncio.wait(left, timeout=REFRESH)
            yield tuple(columns.values())
    finally:
        for each in filling:
            each.cancel()
        await asyncio.gather(*filling, return_exceptions=True)
