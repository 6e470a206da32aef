"""`ChatSession`: the messages of a chat with a task; its requests are the same as those of the server's chat route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foreword.engine.protocol import Stream
from foreword.evaluation.answers import Answers
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
        answers: of the engine that runs the requests.
        find_task: finds a task by name; raises UnknownTask and the like.
        max_tokens, temperature: asked for with every question; the task's defaults if ``None``.
        task: that answers, or the base model.
        turns: what was said so far, in OpenAI's shape.
    """

    answers: Answers
    find_task: TaskLookup
    max_tokens: int | None = None
    temperature: float | None = None
    task: Task | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def select_task(self, name: str | None) -> None:
        """Start a new conversation with a task. Raises UnknownTask, or RequestError for one that takes no messages."""
        task = self.find_task(name)
        task_prompts.require_chat(task)
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
        engine = self.answers.engine
        messages = [*earlier, _message("user", text)]
        kind: task_prompts.ModelKind = {"causal": engine.causal, "is_encoder_decoder": engine.is_encoder_decoder}
        prompt = task_prompts.from_messages(engine.tokenizer, self.task, messages, **kind)
        params = request_sampling_params(
            self.task,
            prompt,
            engine.context,
            CHAT_MAX_TOKENS,
            self.answers.model_defaults,
            is_encoder_decoder=engine.is_encoder_decoder,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )
        return self.answers.submit(self.task, prompt, params, strip=True)[0]

    def add_turn(self, question: str, answer: str) -> None:
        """Append a question and its answer to the messages."""
        self.messages += [_message("user", question), _message("assistant", answer)]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
