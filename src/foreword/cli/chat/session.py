"""`ChatSession`: the messages of a chat with a task; its requests are the same as those of the server's chat route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foreword.engine.protocol import EngineProtocol, Request, Stream
from foreword.evaluation.sampling_params import CHAT_MAX_TOKENS, request_sampling_params
from foreword.text import task_prompts

if TYPE_CHECKING:
    from foreword.core import Task

TaskLookup = Callable[[str | None], "Task | None"]
"""The task of a name; ``None`` for the base model, as a name and as a task."""


@dataclass
class ChatSession:
    """The messages so far, and the task or base model that answers.

    Attributes:
        engine: runs the requests.
        find_task: finds a task by name; raises UnknownTask and the like.
        max_tokens, temperature: asked for with every question; the task's defaults if ``None``.
        task: that answers, or the base model.
        turns: what was said so far, in OpenAI's shape.
    """

    engine: EngineProtocol
    find_task: TaskLookup
    max_tokens: int | None = None
    temperature: float | None = None
    task: Task | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def select_task(self, name: str | None) -> None:
        """Start a new conversation with a task. Raises UnknownTask, or UsageError for one that generates no text."""
        task = self.find_task(name)
        task_prompts.require_generation(task)
        self.task = task
        self.clear()

    def clear(self) -> None:
        """Start a new conversation."""
        self.messages.clear()

    @property
    def single_turn(self) -> bool:
        """Whether earlier messages are left out, because the task's template takes one message."""
        return task_prompts.takes_one_message(self.task)

    def ask(self, text: str) -> Stream:
        """Submit a question behind the messages so far. Raises RequestError and the like."""
        earlier = [] if self.single_turn else self.messages
        prompt = task_prompts.from_messages(self.engine.tokenizer, self.task, [*earlier, _message("user", text)])
        params = request_sampling_params(
            self.task,
            prompt,
            self.engine.context,
            CHAT_MAX_TOKENS,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )
        return self.engine.submit(Request.from_prompt(prompt, params, self.task.name if self.task is not None else ""))

    def add_turn(self, question: str, answer: str) -> None:
        """Append a question and its answer to the messages."""
        self.messages += [_message("user", question), _message("assistant", answer)]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
