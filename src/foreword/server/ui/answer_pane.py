"""`AnswerPane`: the state of one model's answer on the page, and `compare`, which streams several at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

REFRESH_SECONDS = 0.1
"""Between two updates of running answers: quick enough to read along, and no load for a browser."""


@dataclass(frozen=True)
class AnswerPane:
    """One answer as far as it has been streamed.

    Attributes:
        model: the base model's name or a task's, as it was requested.
        ref: ``task@version`` that answers, or the base model; empty until it is known.
        text: so far.
        error: sentence of the error that ended it.
        first_text_seconds, last_text_seconds: from the request to the first and the latest piece of text.
        prompt_tokens, cached_tokens, completion_tokens: known at the end.
        done: whether the stream has ended.
    """

    model: str
    ref: str = ""
    text: str = ""
    error: str | None = None
    first_text_seconds: float | None = None
    last_text_seconds: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    done: bool = False

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first; ``None`` with fewer than two, or before the end."""
        if self.first_text_seconds is None or self.last_text_seconds is None or self.completion_tokens is None:
            return None
        seconds = self.last_text_seconds - self.first_text_seconds
        return (self.completion_tokens - 1) / seconds if self.completion_tokens > 1 and seconds > 0 else None


async def compare(
    models: Sequence[str], stream_answer: Callable[[str], AsyncIterator[AnswerPane]]
) -> AsyncIterator[tuple[AnswerPane, ...]]:
    """Stream the answers of all models at once, and yield the panes of all until the last is done.

    Args:
        stream_answer: yields one model's pane, again with every piece of its answer.
    """
    panes = {model: AnswerPane(model) for model in models}

    async def fill(model: str) -> None:
        async for pane in stream_answer(model):
            panes[model] = pane

    tasks = [asyncio.create_task(fill(model)) for model in panes]
    running = set(tasks)
    try:
        yield tuple(panes.values())
        while running:
            _, running = await asyncio.wait(running, timeout=REFRESH_SECONDS)
            yield tuple(panes.values())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
