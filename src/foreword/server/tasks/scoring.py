"""`ScoringService`: the common part of ``/v1/classify``, ``/v1/tag`` and ``/v1/embeddings``, which generate nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request as HttpRequest

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import UsageError
from foreword.server.operations.admission import SMALL_WORK, Admission
from foreword.server.operations.auth import current_caller
from foreword.server.operations.metrics import Metrics
from foreword.server.operations.scoring_usage import ScoringUsage
from foreword.server.schema import TaskRequestBody
from foreword.server.tasks.table import TaskTable


@dataclass(frozen=True, eq=False)
class ScoringService:
    """Resolves the task of a body, scores in a worker thread and counts the tokens.

    Attributes:
        engine: scores.
        tasks: resolves the task that a body names.
        metrics: gets the token counts.
        admission: bounds requests; the engine scores one batch at a time, so it has few threads.
    """

    engine: EngineProtocol
    tasks: TaskTable
    metrics: Metrics
    admission: Admission

    async def respond(
        self,
        body: TaskRequestBody,
        http: HttpRequest,
        inputs: Sequence[object],
        score: Callable[[EngineProtocol, Task, ScoringUsage], list[dict[str, Any]]],
        *,
        base_model_error: str,
    ) -> dict[str, Any]:
        """The response's body.

        Args:
            inputs: that the body holds.
            score: makes the entries of ``data``; it calls the `ScoringUsage` with its prompts before they are scored.
            base_model_error: why the base model cannot be asked.
        """
        task = await self.resolve_task(body, http, inputs)
        if task is None:
            raise UsageError(base_model_error)
        return await self.run(body, http, task, inputs, lambda usage: score(self.engine, task, usage))

    async def resolve_task(self, body: TaskRequestBody, http: HttpRequest, inputs: Sequence[object]) -> Task | None:
        """The task that a body names, or ``None`` for the base model; counts the inputs against the caller's rate
        limit, before. Raises as `foreword.server.openai.serving.OpenAIServing.resolve_task` does."""
        caller = current_caller(http)
        self.admission.check_count(len(inputs))
        self.admission.check_prompts(inputs)
        caller.count_answers(len(inputs))
        task = await self.tasks.resolve(body.model, body.task_id, caller, body.user_id)
        if task is not None and (version := self.tasks.split_version(task)) is not None:
            http.state.split = task.name, version
        return task

    async def run(
        self,
        body: TaskRequestBody,
        http: HttpRequest,
        task: Task | None,
        inputs: Sequence[object],
        make_data: Callable[[ScoringUsage], list[dict[str, Any]]],
    ) -> dict[str, Any]:
        """The response's body, whose ``data`` is made in a worker thread; counts its tokens before they are run."""
        caller = current_caller(http)
        name, ref = (self.engine.name, self.engine.name) if task is None else (task.name, task.ref)
        usage = ScoringUsage(self.metrics, name, caller, http.state.log_fields)

        def make() -> list[dict[str, Any]]:
            for each in inputs:
                self.admission.check_json(each)
            return make_data(usage)

        data = await self.admission.run(caller, make, work=SMALL_WORK + 1, answers=len(inputs))
        return {"object": "list", "model": body.model or ref, "data": data, "usage": usage.usage()}
