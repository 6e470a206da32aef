"""`Talk`: a conversation behind one task at a time, asked of the engine exactly as the server asks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foreword.engine.protocol import EngineProtocol, Request, Stream
from foreword.evaluation.sampling_params import CHAT_MAX_TOKENS, request_sampling_params
from foreword.text import request

if TYPE_CHECKING:
    from foreword.core import Task

Find = Callable[[str | None], "Task | None"]
"""The task of a name; ``None`` is the base model, as a name and as a task."""


@dataclass
class Talk:
    """A conversation.

    Attributes:
        engine: answers.
        find: raises UnknownTask and its kin.
        max_tokens, temperature: asked for with every question; the task's defaults if ``None``.
        task: that answers, or the base model.
        turns: what was said so far, in OpenAI's shape.
    """

    engine: EngineProtocol
    find: Find
    max_tokens: int | None = None
    temperature: float | None = None
    task: Task | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def turn_to(self, name: str | None) -> None:
        """Let another task answer, from a new beginning. Raises for one that there is not, or that writes nothing."""
        task = self.find(name)
        request.require_generation(task)
        self.task = task
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.turns.clear()

    @property
    def one_message(self) -> bool:
        """Whether every question stands alone, because the task's template takes one message."""
        return request.answers_one_message(self.task)

    def ask(self, text: str) -> Stream:
        """Submit a question behind what was said so far. Raises RequestError and its kin."""
        turns = [] if self.one_message else self.turns
        prompt = request.from_messages(self.engine.tokenizer, self.task, [*turns, _turn("user", text)])
        params = request_sampling_params(
            self.task,
            prompt,
            self.engine.context,
            CHAT_MAX_TOKENS,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )
        return self.engine.submit(Request.from_prompt(prompt, params, self.task.name if self.task is not None else ""))

    def keep(self, question: str, answer: str) -> None:
        """What was asked and answered is part of the conversation from now on."""
        self.turns += [_turn("user", question), _turn("assistant", answer)]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
