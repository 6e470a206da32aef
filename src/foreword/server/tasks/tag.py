"""``POST /v1/tag``: a label for every word, for tasks with a head that labels words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter
from fastapi import Request as HttpRequest

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import UsageError
from foreword.evaluation.predict import tag
from foreword.server.openai.openapi import TAGS
from foreword.server.openai.schema import TagRequest
from foreword.server.operations.auth import caller_of
from foreword.server.operations.metrics import Metrics
from foreword.server.operations.scoring_usage import ScoringUsage
from foreword.server.tasks.table import TaskTable
from foreword.text.request import words_of
from foreword.text.template import Template

Input = str | list[str] | Mapping[str, Any]


def tag_router(engine: EngineProtocol, tasks: TaskTable, metrics: Metrics) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["answers"])
    limiter = CapacityLimiter(2)

    @router.post("/tag", responses=TAGS)
    async def tag_inputs(body: TagRequest, http: HttpRequest) -> dict[str, Any]:
        """The words of every input, a tag for each, and the tag's probability."""
        caller = caller_of(http)
        task = await tasks.resolve(body.model, body.task_id, caller)
        if task is None:
            raise UsageError("the base model tags nothing; name a task that was trained to tag words.")
        caller.admit()
        scored = ScoringUsage(metrics, task.name, caller, http.state.note)
        data = await to_thread.run_sync(_tagged, engine, task, body.inputs, scored, limiter=limiter)
        return {"object": "list", "model": body.model or task.ref, "data": data, "usage": scored.usage()}

    return router


def _tagged(engine: EngineProtocol, task: Task, inputs: Sequence[Input], scored: ScoringUsage) -> list[dict[str, Any]]:
    if task.head is None or not task.head.per_token or task.template is None:
        raise UsageError(f"task '{task.name}' labels whole texts, not their words; ask /v1/classify.")
    template = Template.parse(task.template)
    field = template.only_field()
    rows = [each if isinstance(each, Mapping) else {field: each} for each in inputs]
    words = [words_of(template, row, f"input[{index}]") for index, row in enumerate(rows)]
    found = tag(engine, task, [{field: each} for each in words], scored)
    data = []
    for index, (row, probs) in enumerate(zip(words, found, strict=True)):
        tags = [max(word, key=word.__getitem__) for word in probs]
        sure = [word[label] for word, label in zip(probs, tags, strict=True)]
        data.append({"index": index, "words": row, "tags": tags, "probs": sure})
    return data
