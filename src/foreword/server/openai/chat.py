"""``POST /v1/chat/completions``."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from foreword.core import Task
from foreword.errors import UnsupportedOption
from foreword.server.openai.examples import CHAT_RESPONSE
from foreword.server.openai.schema import ChatRequest
from foreword.server.openai.serialization import ChatSerializer
from foreword.server.openai.serving import OpenAIServing
from foreword.server.operations.json_body import JsonBodyRoute
from foreword.text import chat, task_prompts
from foreword.text.prompt import Prompt
from foreword.text.tool_choice import AnswerPlan


def chat_router(serving: OpenAIServing) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["answers"], route_class=JsonBodyRoute)

    @router.post("/chat/completions", response_model=None, responses=CHAT_RESPONSE)
    async def chat(body: ChatRequest, http: HttpRequest) -> Response:
        """Answer a conversation, or call tools."""
        serving.admission.check_messages(body.messages)
        task = await serving.resolve_task(body, http, n=body.n)
        submission = await serving.prepare(body, http, task, partial(chat_prompt, serving, task, body), strip=True)
        make_reader = submission.plan.make_reader if submission.plan is not None else None
        serializer = ChatSerializer(serving.engine.tokenizer, make_reader, functions=body.asks_functions)
        return await serving.respond(body, http, serializer, submission)

    return router


def chat_prompt(serving: OpenAIServing, task: Task | None, body: ChatRequest) -> tuple[list[Prompt], AnswerPlan | None]:
    """The prompt, and how the answer is read if tools are offered."""
    serving.admission.check_json(body.messages, body.tools or body.functions, body.chat_template_kwargs)
    engine = serving.engine
    choice, tokenizer = body.parse_tool_choice(), engine.tokenizer
    kind: task_prompts.ModelKind = {"causal": engine.causal, "is_encoder_decoder": engine.is_encoder_decoder}
    continued = bool(body.continue_final_message)
    options: chat.RenderOptions = {
        "tools": choice.definitions,
        "template_kwargs": _template_kwargs(tokenizer, body),
        "continue_final_message": continued,
        "add_generation_prompt": not continued if body.add_generation_prompt is None else body.add_generation_prompt,
    }
    if not choice.tools:
        return [task_prompts.from_messages(tokenizer, task, body.messages, **kind, **options)], None
    if continued:
        raise UnsupportedOption(
            "continue_final_message is not supported with tools: what is written already cannot be told from a call; "
            "leave one of them out.",
            "continue_final_message",
        )
    plan = choice.plan(task_prompts.tool_format(tokenizer, task, body.messages, **options), body.constraint)
    prompt = task_prompts.from_messages(tokenizer, task, body.messages, answer_prefix=plan.prefix, **kind, **options)
    return [prompt], plan


def _template_kwargs(tokenizer: Any, body: ChatRequest) -> dict[str, Any]:
    """Variables of the chat template, with those that OpenAI has options for."""
    found: dict[str, Any] = {}
    template = str(tokenizer.chat_template or "")
    effort = body.reasoning_effort
    if effort is not None and "reasoning_effort" in template:
        found["reasoning_effort"] = effort
    elif effort is not None and "enable_thinking" in template:
        found["enable_thinking"] = effort != "none"
    elif effort not in (None, "none"):
        raise _unknown_variable("reasoning_effort")
    if body.verbosity is not None and "verbosity" in template:
        found["verbosity"] = body.verbosity
    elif body.verbosity not in (None, "medium"):
        raise _unknown_variable("verbosity")
    return found | (body.chat_template_kwargs or {})


def _unknown_variable(name: str) -> UnsupportedOption:
    return UnsupportedOption(
        f"{name} is not supported: the model's chat template has no variable for it; leave it out.", name
    )
