"""``POST /v1/classify``: fills the task's template and scores its labels, by their words or by a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import RequestError, UsageError
from foreword.evaluation.evaluate import classify
from foreword.server.schema import ClassifyRequest
from foreword.server.tasks import TaskTable
from foreword.text.template import Template


def classify_router(engine: EngineProtocol, tasks: TaskTable) -> APIRouter:
    router = APIRouter(prefix="/v1")
    # The model scores one piece at a time; more threads would only keep the others from the bank.
    limiter = CapacityLimiter(2)

    @router.post("/classify")
    async def classify_inputs(body: ClassifyRequest) -> dict[str, Any]:
        """The label of every input, and the probability of each label."""
        task = await tasks.resolve(body.model, body.task_id)
        if task is None:
            raise UsageError("the base model has no verbalizer; name a task that was trained to classify.")
        found = await to_thread.run_sync(_probs, engine, task, body.inputs, limiter=limiter)
        data = [
            {"index": index, "label": max(probs, key=probs.__getitem__), "probs": probs}
            for index, probs in enumerate(found)
        ]
        return {"object": "list", "model": body.model or task.ref, "data": data}

    return router


def _probs(engine: EngineProtocol, task: Task, inputs: Sequence[str | Mapping[str, Any]]) -> list[dict[str, float]]:
    rows = [_fields(task, each, f"input[{index}]") for index, each in enumerate(inputs)]
    return classify(engine, task, rows)


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
