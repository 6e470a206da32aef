"""``POST /v1/tokenize``: the tokens that a request would run, as vLLM's clients ask for them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.concurrency import run_in_threadpool

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.server.openai.openapi import TOKENS
from foreword.server.openai.schema import TokenizeRequest
from foreword.server.operations.auth import caller_of
from foreword.server.tasks.table import TaskTable
from foreword.text import request
from foreword.text.request import Prompt


def tokenize_router(engine: EngineProtocol, tasks: TaskTable) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["answers"])

    @router.post("/tokenize", responses=TOKENS)
    async def tokenize(body: TokenizeRequest, http: HttpRequest) -> dict[str, Any]:
        """Tokens of a text, a conversation or a filled template behind a task; those of the prefix are counted."""
        task = await tasks.resolve(body.model, body.task_id, caller_of(http))
        prompt = await run_in_threadpool(_prompt, engine, task, body)
        count = prompt.prefix_length + len(prompt.token_ids)
        shown = {"count": count, "prefix_length": prompt.prefix_length, "max_model_len": engine.context}
        # Soft tokens have no ids that a client could know.
        return {**shown, "tokens": [token for token in prompt.token_ids if token >= 0]}

    return router


def _prompt(engine: EngineProtocol, task: Task | None, body: TokenizeRequest) -> Prompt:
    if body.messages is not None:
        return request.from_messages(engine.tokenizer, task, body.messages)
    if body.inputs is not None:
        return request.from_fields(engine.tokenizer, task, body.inputs, causal=engine.causal, decoder=engine.decoder)
    return request.from_text(engine.tokenizer, task, body.prompt or "")
