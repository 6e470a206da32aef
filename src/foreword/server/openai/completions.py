"""``POST /v1/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol, Sender
from foreword.server.openai.examples import COMPLETION_RESPONSE
from foreword.server.openai.logprobs import CharacterCount, prompt_logprobs
from foreword.server.openai.schema import CompletionRequest
from foreword.server.openai.serialization import CompletionSerializer, PromptEcho
from foreword.server.openai.serving import OpenAIServing
from foreword.server.operations.admission import SMALL_WORK
from foreword.server.operations.auth import current_caller
from foreword.server.operations.json_body import JsonBodyRoute
from foreword.text import seam, task_prompts
from foreword.text.prompt import Prompt


def completions_router(serving: OpenAIServing) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["answers"], route_class=JsonBodyRoute)

    @router.post("/completions", response_model=None, responses=COMPLETION_RESPONSE)
    async def complete(body: CompletionRequest, http: HttpRequest) -> Response:
        """Continue texts or token ids, or fill the task's template and answer."""
        sent = body.prompts or [body.inputs or {}]
        serving.admission.check_prompts(sent)
        task = await serving.resolve_task(body, http, prompts=len(sent), n=body.n)
        submission = await serving.prepare(body, http, task, partial(_prompts, serving, body, task), strip=False)
        echoes: list[PromptEcho] = []
        if body.echo:
            caller, work = current_caller(http), len(await http.body())
            if body.num_logprobs is not None:
                serving.scoring.check_count(len(sent))
                submission, work = submission.charge_prompts(), SMALL_WORK + 1
            prompts = [prompt for prompt, _ in submission.prompts]
            echo = partial(_echoes, serving.engine, body, prompts, submission.sender)
            echoes = await serving.scoring.run(caller, echo, work=work, answers=len(sent))
        return await serving.respond(body, http, CompletionSerializer(serving.engine.tokenizer, echoes), submission)

    return router


def _prompts(serving: OpenAIServing, body: CompletionRequest, task: Task | None) -> tuple[list[Prompt], None]:
    engine = serving.engine
    tokenizer, kind = engine.tokenizer, {"causal": engine.causal, "is_encoder_decoder": engine.is_encoder_decoder}
    if body.inputs is not None:
        serving.admission.check_json(body.inputs)
        return [task_prompts.from_fields(tokenizer, task, body.inputs, **kind)], None
    return [
        task_prompts.from_text(tokenizer, task, each, **kind)
        if isinstance(each, str)
        else task_prompts.from_ids(task, each, **kind)
        for each in body.prompts
    ], None


def _echoes(
    engine: EngineProtocol, body: CompletionRequest, prompts: Sequence[Prompt], sender: Sender
) -> list[PromptEcho]:
    """An echo for every choice. Runs the model if the prompts' own log-probabilities are asked for."""
    tokenizer, echoes = engine.tokenizer, []
    for sent, prompt in zip(body.prompts or [None], prompts, strict=True):
        text = sent if isinstance(sent, str) else tokenizer.decode([token for token in prompt.token_ids if token >= 0])
        logprobs, count = None, CharacterCount()
        if body.num_logprobs is not None:
            found = engine.prompt_logprobs(prompt, body.num_logprobs, sender=sender)
            added = seam.special_tokens(tokenizer)[0] if isinstance(sent, str) else ()
            unsent = len(added) if prompt.token_ids[: len(added)] == added else 0
            logprobs = prompt_logprobs(tokenizer, prompt.token_ids, found, count, unsent)
        echoes += [PromptEcho(text, logprobs, count.value)] * (body.n or 1)
    return echoes
