"""``POST /v1/responses``: OpenAI's newer API for conversations and tools. Nothing is stored."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import JSONResponse

from foreword.core import SamplingParams
from foreword.engine.protocol import Chunk, Stream
from foreword.errors import ForewordError, PromptTooLong
from foreword.server.openai.chat import chat_prompt
from foreword.server.openai.examples import RESPONSES_RESPONSE
from foreword.server.openai.generation import cancel_on_disconnect, gather_outputs, merge_streams
from foreword.server.openai.response_schema import ResponseRequest
from foreword.server.openai.response_writer import Event, ResponseWriter
from foreword.server.openai.schema import ChatRequest
from foreword.server.openai.serialization import usage
from foreword.server.openai.serving import OpenAIServing
from foreword.server.openai.streaming import SSEResponse
from foreword.server.operations.auth import current_caller
from foreword.server.operations.error_handlers import error_body
from foreword.server.operations.json_body import JsonBodyRoute


def responses_router(serving: OpenAIServing) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["answers"], route_class=JsonBodyRoute)

    @router.post("/responses", response_model=None, responses=RESPONSES_RESPONSE)
    async def respond(body: ResponseRequest, http: HttpRequest) -> Response:
        """Answer a text or a conversation, or call tools."""
        serving.admission.check_messages(body.input if isinstance(body.input, list) else [{"content": body.input}])
        caller, work = current_caller(http), len(await http.body())
        chat = await serving.admission.run(caller, partial(_to_chat, body), work=work)
        task = await serving.resolve_task(body, http)
        submission = await serving.prepare(chat, http, task, partial(chat_prompt, serving, task, chat), strip=True)
        ref, plan = submission.ref, submission.plan
        try:
            (stream,) = await submission.submit(serving.admission)
        except PromptTooLong as error:
            if body.truncation != "auto":
                raise
            raise PromptTooLong(f"{str(error).rstrip('.')}; truncation: auto leaves nothing out here.") from None
        response = _response(body, chat, ref, stream.request.sampling)
        reader = plan.make_reader() if plan is not None else None
        writer = ResponseWriter(response, serving.engine.tokenizer, reader)
        if body.stream:
            return SSEResponse(_sse_events(writer, stream, serving.timeout), [stream])
        async with cancel_on_disconnect(http.receive, [stream]):
            return await _complete_response(writer, stream, serving.timeout)

    return router


def _to_chat(body: ResponseRequest) -> ChatRequest:
    try:
        return body.to_chat()
    except ValidationError as error:  # by the rules of chat completions, whose options have the same names
        errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise RequestValidationError(errors) from error


def _response(body: ResponseRequest, chat: ChatRequest, ref: str, sampling: SamplingParams) -> dict[str, Any]:
    """The fields of the response that say what was asked, and how it is answered."""
    sent = body.model_dump(by_alias=True, exclude_none=True)
    effort = body.reasoning.effort if body.reasoning is not None else None
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": body.model or ref,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": False,
        "system_fingerprint": ref,
        "temperature": sampling.temperature,
        "text": {"format": {"type": "text"}, **sent.get("text", {})},
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": [{"parameters": None, "strict": None, **tool} for tool in body.tools or ()],
        "top_logprobs": chat.num_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


async def _complete_response(writer: ResponseWriter, stream: Stream, timeout: float | None) -> Response:
    (output,) = await gather_outputs([stream], timeout)
    whole = Chunk(output.text, output.token_ids, output.finish_reason, logprobs=output.logprobs)
    events = [
        *writer.push(whole),
        *writer.finish(output.finish_reason, usage([stream], len(output.token_ids))),
    ]
    return JSONResponse(events[-1]["response"])


async def _sse_events(writer: ResponseWriter, stream: Stream, timeout: float | None) -> AsyncIterator[str]:
    """Every event of a response; the last one holds all of it, or is an error."""
    tokens, reason = 0, "stop"
    try:
        for event in writer.opening():
            yield _sse(event)
        async for _, chunk in merge_streams([stream], timeout):
            tokens += len(chunk.token_ids)
            reason = chunk.finish_reason or reason
            for event in writer.push(chunk):
                yield _sse(event)
        for event in writer.finish(reason, usage([stream], tokens)):
            yield _sse(event)
    except Exception as error:  # the status is sent already, so the body has to tell
        if not isinstance(error, ForewordError):
            logging.getLogger(__name__).exception("a stream failed")
        yield _sse(writer.error(error_body(error)["error"]))


def _sse(event: Event) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n"
