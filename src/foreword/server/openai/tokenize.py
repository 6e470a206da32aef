"""``POST /v1/tokenize``: the token ids that a request would run; vLLM's route of the same name."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import model_validator
from pydantic_core import PydanticCustomError

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.server.openai.schema import Messages
from foreword.server.operations.admission import Admission
from foreword.server.operations.auth import current_caller
from foreword.server.operations.json_body import JsonBodyRoute
from foreword.server.schema import TaskRequestBody, example_request, example_response
from foreword.server.tasks.table import TaskTable
from foreword.text import task_prompts
from foreword.text.prompt import Prompt


class TokenizeRequest(TaskRequestBody):
    """``POST /v1/tokenize``: one of ``prompt``, ``messages`` and ``inputs``."""

    model_config = example_request({"model": "support", "messages": [{"role": "user", "content": "Hello"}]})

    prompt: str | None = None
    messages: Messages | None = None
    inputs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if [self.prompt, self.messages, self.inputs].count(None) != 2:
            raise PydanticCustomError("invalid_value", "must hold one of prompt, messages and inputs")
        return self


RESPONSE = example_response({"count": 4, "prefix_length": 0, "max_model_len": 8192, "tokens": [19556, 28, 905, 17]})


def tokenize_router(engine: EngineProtocol, tasks: TaskTable, admission: Admission) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["answers"], route_class=JsonBodyRoute)

    @router.post("/tokenize", responses=RESPONSE)
    async def tokenize(body: TokenizeRequest, http: HttpRequest) -> dict[str, Any]:
        """Tokens of a text, a conversation or a filled template behind a task; those of the prefix are counted."""
        admission.check_prompts([body.prompt or ""])
        admission.check_messages(body.messages or ())
        caller, work = current_caller(http), len(await http.body())
        task = await tasks.resolve(body.model, body.task_id, caller, body.user_id)
        work += len(task.text or "") if task is not None else 0
        prompt = await admission.run(caller, partial(_prompt, engine, task, body, admission), work=work)
        return {
            "count": prompt.prefix_length + len(prompt.token_ids),
            "prefix_length": prompt.prefix_length,
            "max_model_len": engine.context,
            # Soft tokens have no ids that a client could know.
            "tokens": [token for token in prompt.token_ids if token >= 0],
        }

    return router


def _prompt(engine: EngineProtocol, task: Task | None, body: TokenizeRequest, admission: Admission) -> Prompt:
    admission.check_json(body.messages, body.inputs)
    kind: task_prompts.ModelKind = {"causal": engine.causal, "is_encoder_decoder": engine.is_encoder_decoder}
    if body.messages is not None:
        return task_prompts.from_messages(engine.tokenizer, task, body.messages, **kind)
    if body.inputs is not None:
        return task_prompts.from_fields(engine.tokenizer, task, body.inputs, **kind)
    return task_prompts.from_text(engine.tokenizer, task, body.prompt or "", **kind)
