"""``POST /v1/chat/completions`` and ``POST /v1/completions``, complete or streamed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from foreword.core import SamplingParams, Task
from foreword.engine.protocol import EngineProtocol, Request, Stream
from foreword.evaluation.sampling_params import request_sampling_params
from foreword.server.openai.generation import gather, held, submit_all
from foreword.server.openai.logprobs import prompt_logprobs
from foreword.server.openai.openapi import CHAT, COMPLETION
from foreword.server.openai.schema import ChatRequest, CompletionRequest, Generation
from foreword.server.openai.serialization import (
    ChatSerializer,
    ChoiceSerializer,
    CompletionSerializer,
    PromptEcho,
    ResponseMeta,
    prompt_token_ids,
    usage,
)
from foreword.server.openai.streaming import SSEResponse, events
from foreword.server.operations.auth import caller_of
from foreword.server.operations.metrics import Metrics
from foreword.server.operations.usage import UsageRecorder
from foreword.server.tasks.table import TaskTable
from foreword.text import request
from foreword.text.request import Prompt


def completions_router(service: Completions) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["answers"])

    @router.post("/chat/completions", response_model=None, responses=CHAT)
    async def chat(body: ChatRequest, http: HttpRequest) -> Response:
        """Answer a conversation."""
        return await service.chat(body, http)

    @router.post("/completions", response_model=None, responses=COMPLETION)
    async def complete(body: CompletionRequest, http: HttpRequest) -> Response:
        """Continue texts or token ids, or fill the task's template and answer."""
        return await service.complete(body, http)

    return router


@dataclass(frozen=True, eq=False)
class Completions:
    """Both endpoints: they differ in how a request becomes prompts and in the dialect of the answer.

    Attributes:
        seconds: an answer that takes longer is ended; no bound if ``None``.
    """

    engine: EngineProtocol
    tasks: TaskTable
    metrics: Metrics
    seconds: float | None = None

    async def chat(self, body: ChatRequest, http: HttpRequest) -> Response:
        task = await self._task(body, http)
        prompt = request.from_messages(self.engine.tokenizer, task, body.messages)
        return await self._answer(body, http, ChatSerializer(self.engine.tokenizer), task, [prompt])

    async def complete(self, body: CompletionRequest, http: HttpRequest) -> Response:
        task = await self._task(body, http)
        prompts = self._prompts(body, task)
        echoes = await run_in_threadpool(self._echoes, body, prompts) if body.echo else []
        return await self._answer(body, http, CompletionSerializer(self.engine.tokenizer, echoes), task, prompts)

    async def _task(self, body: Generation, http: HttpRequest) -> Task | None:
        caller = caller_of(http)
        task = await self.tasks.resolve(body.model, body.task_id, caller)
        request.require_generation(task)
        caller.admit()
        return task

    def _prompts(self, body: CompletionRequest, task: Task | None) -> list[Prompt]:
        tokenizer = self.engine.tokenizer
        if body.inputs is not None:
            return [request.from_fields(tokenizer, task, body.inputs)]
        return [
            request.from_text(tokenizer, task, each) if isinstance(each, str) else request.from_ids(task, each)
            for each in body.prompts
        ]

    def _echoes(self, body: CompletionRequest, prompts: Sequence[Prompt]) -> list[PromptEcho]:
        """One for every choice. Runs the model if the prompts' own log-probabilities are wanted."""
        tokenizer, top = self.engine.tokenizer, body.wanted_logprobs
        echoes = []
        for given, prompt in zip(body.prompts or [None], prompts, strict=True):
            text = (
                given if isinstance(given, str) else tokenizer.decode([each for each in prompt.token_ids if each >= 0])
            )
            logprobs = None
            if top is not None:
                known = self.engine.prompt_logprobs(prompt, top)
                logprobs = prompt_logprobs(tokenizer, prompt.token_ids, known)
            echoes += [PromptEcho(text, logprobs)] * (body.n or 1)
        return echoes

    async def _answer(
        self,
        body: Generation,
        http: HttpRequest,
        dialect: ChoiceSerializer,
        task: Task | None,
        prompts: Sequence[Prompt],
    ) -> Response:
        group = task.name if task is not None else ""
        asked = [Request.from_prompt(each, sampling(body, task, each, self.engine.context), group) for each in prompts]
        requests = [each.fan_out(body.n or 1) for each in asked]
        ref = task.ref if task is not None else self.engine.name
        envelope = ResponseMeta(dialect, body.model or ref, ref)
        note = http.state.note
        note["model"] = ref
        watch = UsageRecorder(self.metrics, group or self.engine.name, caller_of(http), note)
        streams = await submit_all(self.engine, requests, watch)
        if body.stream:
            return SSEResponse(events(envelope, streams, body, self.seconds), streams)
        async with held(http.receive, streams):
            return await _whole(envelope, streams, body, self.seconds)


def sampling(body: Generation, task: Task | None, prompt: Prompt, context: int | None) -> SamplingParams:
    """What the request asks for, else the task's defaults, else the endpoint's.

    Args:
        prompt: bounds a default by the room that it leaves in ``context``; what a client asks for is never cut.
    """
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    return request_sampling_params(
        task,
        prompt,
        context,
        body.usual_tokens,
        max_tokens=body.answer_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0) if body.top_k is not None else None,
        seed=body.seed,
        stop=tuple(stop) if stop is not None else None,
        stop_token_ids=tuple(body.stop_token_ids) if body.stop_token_ids is not None else None,
        ignore_eos=body.ignore_eos,
        min_p=body.min_p,
        min_tokens=body.min_tokens,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=None if body.logit_bias is None else {int(token): b for token, b in body.logit_bias.items()},
        logprobs=body.wanted_logprobs,
        constraint=body.constraint,
    )


async def _whole(
    envelope: ResponseMeta, streams: Sequence[Stream], body: Generation, seconds: float | None
) -> Response:
    answers = await gather(streams, seconds)
    choices = [envelope.dialect.choice(index, answer) for index, answer in enumerate(answers)]
    if body.return_token_ids:
        for choice, answer, stream in zip(choices, answers, streams, strict=True):
            choice["token_ids"] = list(answer.token_ids)
            choice["prompt_token_ids"] = prompt_token_ids(stream.request)
    asked = streams[:: body.n or 1]  # a prompt counts once, however often it is answered
    used = usage(asked, sum(len(answer.token_ids) for answer in answers))
    return JSONResponse(envelope.whole(choices, used))
