"""``POST /v1/chat/completions``."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from foreword.server.openai.examples import CHAT_RESPONSE
from foreword.server.openai.schema import ChatRequest
from foreword.server.openai.serialization import ChatSerializer
from foreword.server.openai.serving import OpenAIServing
from foreword.text import task_prompts


def chat_router(serving: OpenAIServing) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["answers"])

    @router.post("/chat/completions", response_model=None, responses=CHAT_RESPONSE)
    async def chat(body: ChatRequest, http: HttpRequest) -> Response:
        """Answer a conversation."""
        task = await serving.resolve_task(body, http)
        tokenizer = serving.engine.tokenizer
        prompt = task_prompts.from_messages(tokenizer, task, body.messages, causal=serving.engine.causal)
        return await serving.respond(body, http, ChatSerializer(tokenizer), task, [prompt])

    return router
