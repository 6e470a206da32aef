"""``POST /v1/classify``: fills the task's template and scores its labels, by their words or by a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter
from fastapi import Request as HttpRequest

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import RequestError, UsageError
from foreword.evaluation.predict import classify
from foreword.server.openai.openapi import CLASSES
from foreword.server.openai.schema import ClassifyRequest
from foreword.server.operations.auth import caller_of
from foreword.server.operations.metrics import Metrics
from foreword.server.operations.scoring_usage import ScoringUsage
from foreword.server.tasks.table import TaskTable
from foreword.text.template import Template


def classify_router(engine: EngineProtocol, tasks: TaskTable, metrics: Metrics) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["answers"])
    # The model scores one piece at a time; more threads would only keep the others from the bank.
    limiter = CapacityLimiter(2)

    @router.post("/classify", responses=CLASSES)
    async def classify_inputs(body: ClassifyRequest, http: HttpRequest) -> dict[str, Any]:
        """The label of every input, and the probability of each label."""
        caller = caller_of(http)
        task = await tasks.resolve(body.model, body.task_id, caller)
        if task is None:
            raise UsageError("the base model has no verbalizer; name a task that was trained to classify.")
        caller.admit()
        scored = ScoringUsage(metrics, task.name, caller, http.state.note)
        found = await to_thread.run_sync(_probs, engine, task, body.inputs, scored, limiter=limiter)
        data = [
            {"index": index, "label": max(probs, key=probs.__getitem__), "probs": probs}
            for index, probs in enumerate(found)
        ]
        return {"object": "list", "model": body.model or task.ref, "data": data, "usage": scored.usage()}

    return router


def _probs(
    engine: EngineProtocol, task: Task, inputs: Sequence[str | Mapping[str, Any]], scored: ScoringUsage
) -> list[dict[str, float]]:
    rows = [_fields(task, each, f"input[{index}]") for index, each in enumerate(inputs)]
    return classify(engine, task, rows, scored)


def _fields(task: Task, given: str | Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """One input as values of fields. Raises RequestError for a text when the template has several."""
    if task.template is None:  # `classify` says so
        return {}
    template = Template.parse(task.template)
    if isinstance(given, str):
        if len(template.fields) != 1:
            names = ", ".join(template.fields) or "none"
            raise RequestError(
                f"{where} is a text, and the template of task '{task.name}' has {len(template.fields)} fields "
                f"({names}); send an object with a value for each field."
            )
        given = {template.fields[0]: given}
    template.fill(given, where, answer=False)
    return given
