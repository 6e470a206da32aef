"""``POST /v1/embeddings``: one normalized vector for every text, behind a task's prefix if a task is named."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import Field

from foreword.core import Pooling, Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import UnsupportedOption
from foreword.server.operations.json_body import JsonBodyRoute
from foreword.server.operations.scoring_usage import ScoringUsage
from foreword.server.schema import NonEmptyList, TaskRequestBody, example_request, example_response, must_be
from foreword.server.tasks.scoring import ScoringService
from foreword.text import embedding_prompts


class EmbeddingRequest(TaskRequestBody):
    """``POST /v1/embeddings``."""

    model_config = example_request({"model": "smollm2-135m", "input": ["A fine film.", "Dull."]})

    input: Annotated[
        str | NonEmptyList[str] | NonEmptyList[int] | NonEmptyList[NonEmptyList[int]],
        must_be("a text, a list of texts, a list of token ids, or a list of such lists"),
    ] = Field(description="Stands behind the task's prefix verbatim, without template.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Lists of numbers, or base64 of little-endian float32."
    )
    pooling: Pooling | None = Field(
        None, description="The last token's hidden state, the first token's or their mean; by default the model's own."
    )
    dimensions: int | None = Field(None, ge=1, description="Only the model's own number: embeddings are never cut.")

    @property
    def inputs(self) -> list[str | list[int]]:
        """Texts and lists of token ids, one an embedding."""
        if isinstance(self.input, str):
            return [self.input]
        ids = [each for each in self.input if isinstance(each, int)]
        return [ids] if ids else [each for each in self.input if not isinstance(each, int)]


RESPONSE = example_response(
    {
        "object": "list",
        "model": "smollm2-135m",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.02, -0.11, 0.07]}],
        "usage": {"prompt_tokens": 4, "total_tokens": 4, "prompt_tokens_details": {"cached_tokens": 0}},
    }
)


def embeddings_router(scoring: ScoringService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["answers"], route_class=JsonBodyRoute)

    @router.post("/embeddings", responses=RESPONSE)
    async def embed(body: EmbeddingRequest, http: HttpRequest) -> dict[str, Any]:
        """One vector of length 1 for every input."""
        inputs = body.inputs
        task = await scoring.resolve_task(body, http, inputs)
        return await scoring.run(body, http, task, inputs, lambda usage: _embed(scoring.engine, body, task, usage))

    return router


def _embed(
    engine: EngineProtocol, body: EmbeddingRequest, task: Task | None, usage: ScoringUsage
) -> list[dict[str, Any]]:
    width = engine.identity.head_size
    if body.dimensions not in (None, width):
        raise UnsupportedOption(
            f"dimensions must be {width} or left out: {engine.name} is not known to be trained for embeddings that "
            "are cut (Matryoshka)."
        )
    prompts = [
        embedding_prompts.from_text(engine.tokenizer, task, each)
        if isinstance(each, str)
        else embedding_prompts.from_ids(task, each)
        for each in body.inputs
    ]
    usage(prompts)
    vectors = np.asarray(engine.embed(prompts, body.pooling, sender=usage.sender), "<f4")
    encode = _base64 if body.encoding_format == "base64" else np.ndarray.tolist
    return [
        {"object": "embedding", "index": index, "embedding": encode(vector)} for index, vector in enumerate(vectors)
    ]


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.tobytes()).decode()
