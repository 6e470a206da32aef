"""`ScoringService`: the common part of ``/v1/classify``, ``/v1/tag`` and ``/v1/embeddings``, which generate nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import Request as HttpRequest

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import UsageError
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
    """

    engine: EngineProtocol
    tasks: TaskTable
    metrics: Metrics
    # The engine scores one batch at a time; more threads would only keep other routes from the bank. Each tenant has
    # threads of its own, so that none waits at the door for what another one scores.
    _limiters: defaultdict[str | None, CapacityLimiter] = field(
        default_factory=lambda: defaultdict(lambda: CapacityLimiter(2))
    )

    async def respond(
        self,
        body: TaskRequestBody,
        http: HttpRequest,
        score: Callable[[EngineProtocol, Task, ScoringUsage], list[dict[str, Any]]],
        *,
        base_model_error: str,
    ) -> dict[str, Any]:
        """The response's body.

        Args:
            score: makes the entries of ``data``; it calls the `ScoringUsage` with its prompts before they are scored.
            base_model_error: why the base model cannot be asked.
        """
        task = await self.resolve_task(body, http)
        if task is None:
            raise UsageError(base_model_error)
        return await self.run(body, http, task, lambda usage: score(self.engine, task, usage))

    async def resolve_task(self, body: TaskRequestBody, http: HttpRequest) -> Task | None:
        """The task that a body names, or ``None`` for the base model. Raises what `TaskTable.resolve` does."""
        task = await self.tasks.resolve(body.model, body.task_id, current_caller(http), body.user_id)
        if task is not None and (version := self.tasks.split_version(task)) is not None:
            http.state.split = task.name, version
        return task

    async def run(
        self,
        body: TaskRequestBody,
        http: HttpRequest,
        task: Task | None,
        make_data: Callable[[ScoringUsage], list[dict[str, Any]]],
    ) -> dict[str, Any]:
        """The response's body, whose ``data`` is made in a worker thread; counts the request against its limits."""
        caller = current_caller(http)
        caller.count_request()
        name, ref = (self.engine.name, self.engine.name) if task is None else (task.name, task.ref)
        usage = ScoringUsage(self.metrics, name, caller, http.state.log_fields)
        data = await to_thread.run_sync(make_data, usage, limiter=self._limiters[caller.name])
        return {"object": "list", "model": body.model or ref, "data": data, "usage": usage.usage()}
