"""``POST /v1/tag``: a label for every word, for tasks with a head that labels words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import Field

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import UsageError
from foreword.evaluation.predict import tag
from foreword.server.operations.json_body import JsonBodyRoute
from foreword.server.operations.scoring_usage import ScoringUsage
from foreword.server.schema import NonEmptyList, TaskRequestBody, example_request, example_response, must_be
from foreword.server.tasks.scoring import ScoringService
from foreword.text.task_prompts import field_words
from foreword.text.template import Template


class TagRequest(TaskRequestBody):
    """``POST /v1/tag``."""

    model_config = example_request({"model": "slots", "input": ["play some jazz"]})

    input: Annotated[
        str | dict[str, Any] | NonEmptyList[str | NonEmptyList[str] | dict[str, Any]],
        must_be("a text, an object of field values, or a list of texts, lists of words or objects, not empty"),
    ] = Field(description="A text is cut into words at white space; a list inside the list holds words.")

    @property
    def inputs(self) -> list[str | list[str] | dict[str, Any]]:
        return self.input if isinstance(self.input, list) else [self.input]


RESPONSE = example_response(
    {
        "object": "list",
        "model": "slots",
        "data": [{"index": 0, "words": ["play", "jazz"], "tags": ["O", "B-genre"], "probs": [0.99, 0.95]}],
        "usage": {"prompt_tokens": 18, "total_tokens": 18, "prompt_tokens_details": {"cached_tokens": 16}},
    }
)


def tag_router(scoring: ScoringService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["answers"], route_class=JsonBodyRoute)

    @router.post("/tag", responses=RESPONSE)
    async def tag_inputs(body: TagRequest, http: HttpRequest) -> dict[str, Any]:
        """The words of every input, a tag for each, and the tag's probability."""

        def score(engine: EngineProtocol, task: Task, usage: ScoringUsage) -> list[dict[str, Any]]:
            return _tag(engine, task, body.inputs, usage)

        error = "the base model tags nothing; name a task that was trained to tag words."
        return await scoring.respond(body, http, body.inputs, score, base_model_error=error)

    return router


def _tag(
    engine: EngineProtocol, task: Task, inputs: Sequence[str | list[str] | Mapping[str, Any]], usage: ScoringUsage
) -> list[dict[str, Any]]:
    if task.head is None or not task.head.per_token or task.template is None:
        raise UsageError(f"task '{task.name}' labels whole texts, not their words; ask /v1/classify.")
    template = Template.parse(task.template)
    field = template.single_field()
    rows = [value if isinstance(value, Mapping) else {field: value} for value in inputs]
    sentences = [field_words(template, row, f"input[{index}]") for index, row in enumerate(rows)]
    scored = tag(engine, task, [{field: words} for words in sentences], usage, usage.sender)
    data = []
    for index, (words, word_probs) in enumerate(zip(sentences, scored, strict=True)):
        tags = [max(probs, key=probs.__getitem__) for probs in word_probs]
        tag_probs = [probs[label] for probs, label in zip(word_probs, tags, strict=True)]
        data.append({"index": index, "words": words, "tags": tags, "probs": tag_probs})
    return data
