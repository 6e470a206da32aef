"""``POST /v1/classify``: fills the task's template and scores its labels, by their words or by a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import Field

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import RequestError
from foreword.evaluation.predict import classify, label_answer
from foreword.server.operations.json_body import JsonBodyRoute
from foreword.server.operations.scoring_usage import ScoringUsage
from foreword.server.schema import NonEmptyList, TaskRequestBody, example_request, example_response, must_be
from foreword.server.tasks.scoring import ScoringService
from foreword.text.template import Template


class ClassifyRequest(TaskRequestBody):
    """``POST /v1/classify``."""

    model_config = example_request({"model": "sentiment", "input": ["A fine film.", {"text": "Dull."}]})

    input: Annotated[
        str | dict[str, Any] | NonEmptyList[str | dict[str, Any]],
        must_be("a text, an object of field values, or a list of these, not empty"),
    ] = Field(description="A text fills the template's only field; an object names the fields.")

    @property
    def inputs(self) -> list[str | dict[str, Any]]:
        return self.input if isinstance(self.input, list) else [self.input]


RESPONSE = example_response(
    {
        "object": "list",
        "model": "sentiment",
        "data": [{"index": 0, "label": "positive", "probs": {"positive": 0.97, "negative": 0.03}}],
        "usage": {"prompt_tokens": 20, "total_tokens": 20, "prompt_tokens_details": {"cached_tokens": 16}},
    }
)


def classify_router(scoring: ScoringService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["answers"], route_class=JsonBodyRoute)

    @router.post("/classify", responses=RESPONSE)
    async def classify_inputs(body: ClassifyRequest, http: HttpRequest) -> dict[str, Any]:
        """The label of every input, and the probability of each label.

        Of a task that gives a text several labels, ``labels`` are those of probability 0.5 or more, and ``label`` is
        the most probable one. A task that gives a number answers ``value`` alone.
        """

        def score(engine: EngineProtocol, task: Task, usage: ScoringUsage) -> list[dict[str, Any]]:
            rows = [_fields(task, value, f"input[{index}]") for index, value in enumerate(body.inputs)]
            return [
                {"index": index, **label_answer(task, probs)}
                for index, probs in enumerate(classify(engine, task, rows, usage, usage.sender))
            ]

        error = "the base model has no verbalizer; name a task that was trained to classify."
        return await scoring.respond(body, http, body.inputs, score, base_model_error=error)

    return router


def _fields(task: Task, value: str | Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """One input as values of the template's fields. Raises RequestError for a text when the template has several."""
    if task.template is None:  # `classify` raises for it
        return {}
    template = Template.parse(task.template)
    if isinstance(value, str):
        if template.text_field is None:
            names = ", ".join(template.fields) or "none"
            raise RequestError(
                f"{where} is a text, and the template of task '{task.name}' has {len(template.fields)} fields "
                f"({names}); send an object with a value for each field."
            )
        value = {template.text_field: value}
    template.fill(value, where, answer=False)
    return value
