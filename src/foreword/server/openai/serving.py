"""`OpenAIServing`: the common part of the two completions endpoints, from the resolved task to the HTTP response."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response

from foreword.core import SamplingParams, Task
from foreword.engine.protocol import EngineProtocol, Stream
from foreword.evaluation.answers import Answers
from foreword.evaluation.sampling_params import request_sampling_params
from foreword.server.openai.generation import (
    CompletionOutput,
    PromptOnlyStream,
    Submission,
    cancel_on_disconnect,
    gather_outputs,
)
from foreword.server.openai.schema import GenerationRequest
from foreword.server.openai.serialization import ChoiceSerializer, ResponseMeta, prompt_token_ids, usage
from foreword.server.openai.streaming import SSEResponse, sse_events
from foreword.server.operations.admission import Admission
from foreword.server.operations.auth import current_caller
from foreword.server.operations.fair_threads import FairThreads
from foreword.server.operations.metrics import Metrics
from foreword.server.operations.usage import UsageRecorder
from foreword.server.schema import TaskRequestBody
from foreword.server.tasks.table import TaskTable
from foreword.text import task_prompts
from foreword.text.detokenize import special_token_id
from foreword.text.prompt import Prompt
from foreword.text.tool_choice import AnswerPlan

_WORK_AN_ENTRY = 16
"""How many characters take as long to handle as a token of an answer, or one of its log-probabilities, about."""


@dataclass(frozen=True, eq=False)
class OpenAIServing:
    """Endpoints differ in how a body becomes prompts and in the `ChoiceSerializer` of the response.

    Attributes:
        answers: generate, or label.
        tasks: resolves the task that a body names.
        metrics: gets times and token counts.
        admission: bounds requests and their preparation.
        scoring: the same of the prompts' own log-probabilities.
        compiling: threads that constraints are compiled in.
        timeout: seconds after which a generation is ended; no bound if ``None``.
    """

    answers: Answers
    tasks: TaskTable
    metrics: Metrics
    admission: Admission
    scoring: Admission
    compiling: FairThreads
    timeout: float | None = None

    @property
    def engine(self) -> EngineProtocol:
        return self.answers.engine

    async def resolve_task(
        self, body: TaskRequestBody, http: HttpRequest, *, prompts: int = 1, n: int | None = None
    ) -> Task | None:
        """The task, or ``None`` for the base model; counts all answers against the caller's rate limit, before.

        Raises RequestError for a task that cannot generate, or for more answers than may wait, EngineBusy,
        LimitReached, and what `TaskTable.resolve` does.
        """
        caller = current_caller(http)
        self.admission.check_count(prompts, n or 1)
        caller.count_answers(prompts * (n or 1))
        task = await self.tasks.resolve(body.model, body.task_id, caller, body.user_id)
        if task is not None and (version := self.tasks.split_version(task)) is not None:
            http.state.split = task.name, version
        task_prompts.require_generation(task)
        return task

    async def prepare(
        self,
        body: GenerationRequest,
        http: HttpRequest,
        task: Task | None,
        make_prompts: Callable[[], tuple[Sequence[Prompt], AnswerPlan | None]],
        *,
        strip: bool,
    ) -> Submission:
        """What the engine will be asked, with the most tokens that it may take reserved.

        Args:
            make_prompts: makes the prompts, and the plan of answers that may call tools; called in a thread if the
                body or the task's text is long.
            strip: see `Answers.submit`.

        Raises LimitReached, and what ``make_prompts`` and `sampling_params` raise.
        """
        caller, n = current_caller(http), body.n or 1
        name = self.engine.name if task is None else task.name
        sender = caller.sender(body.cache_salt)
        version, log_fields = self.tasks.split_version(task), http.state.log_fields

        def prepare() -> Submission:
            prompts, plan = make_prompts()
            sampled = [(prompt, sampling_params(body, task, prompt, self.answers, plan)) for prompt in prompts]
            most = sum(p.prefix_length + len(p.token_ids) + n * sampling.max_tokens for p, sampling in sampled)
            reservation = caller.reserve_tokens(most)
            recorder = UsageRecorder(self.metrics, name, caller, log_fields, version, reservation)
            return Submission(self.answers, task, sampled, n, strip, sender, recorder, plan)

        work = len(await http.body()) + (len(task.text or "") if task is not None else 0)
        submission = await self.admission.run(caller, prepare, work=work, answers=n)
        log_fields["model"] = submission.ref
        return submission

    async def respond(
        self, body: GenerationRequest, http: HttpRequest, serializer: ChoiceSerializer, submission: Submission
    ) -> Response:
        """Answer all prompts and respond, complete or as server-sent events."""
        streams = await submission.submit(self.admission, self.compiling, http.receive)
        meta = ResponseMeta(serializer, body.model or submission.ref, submission.ref)
        if body.max_answer_tokens == 0:
            streams = [PromptOnlyStream(stream) for stream in streams]
        if body.stream:
            return SSEResponse(sse_events(meta, streams, body, self.timeout), streams)
        async with cancel_on_disconnect(http.receive, streams):
            outputs = await gather_outputs(streams, self.timeout)
        entries = sum(map(len, (output.token_ids for output in outputs))) * (1 + (body.num_logprobs or 0))
        return await self.admission.run(
            submission.recorder.caller,
            partial(_complete_response, meta, streams, outputs, body),
            work=entries * _WORK_AN_ENTRY,
        )


def sampling_params(
    body: GenerationRequest, task: Task | None, prompt: Prompt, answers: Answers, plan: AnswerPlan | None = None
) -> SamplingParams:
    """The request's sampling options, else the task's defaults, else the model's, else the endpoint's.

    Args:
        prompt: a default length is cut to the room that it leaves in the engine's context; a requested one never is.
        answers: give the engine, and the model's defaults.
        plan: of an answer that may call tools.
    """
    engine = answers.engine
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    skip_special_tokens = body.skip_special_tokens
    if plan is not None:
        if plan.stop:
            own = stop if stop is not None else (task.generation.get("stop") if task is not None else None)
            stop = [*(own or ()), *plan.stop]
        if any(special_token_id(engine.tokenizer, mark) is not None for mark in plan.marks):
            skip_special_tokens = False
    return request_sampling_params(
        task,
        prompt,
        engine.context,
        body.default_max_tokens,
        answers.model_defaults,
        is_encoder_decoder=engine.is_encoder_decoder,
        # An engine writes at least one token, which `PromptOnlyStream` takes off again.
        max_tokens=1 if body.max_answer_tokens == 0 else body.max_answer_tokens,
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
        logprobs=body.num_logprobs,
        constraint=plan.constraint if plan is not None else body.constraint,
        skip_special_tokens=skip_special_tokens,
        include_stop_str_in_output=body.include_stop_str_in_output,
    )


def _complete_response(
    meta: ResponseMeta, streams: Sequence[Stream], outputs: Sequence[CompletionOutput], body: GenerationRequest
) -> Response:
    first_of_each = streams[:: body.n or 1]  # a prompt counts once, however many completions it has
    used = usage(first_of_each, sum(len(output.token_ids) for output in outputs))
    return Response(meta.body(_choices(meta, streams, outputs, body), used), media_type="application/json")


def _choices(
    meta: ResponseMeta, streams: Sequence[Stream], outputs: Sequence[CompletionOutput], body: GenerationRequest
) -> Iterator[dict[str, Any]]:
    for index, (output, stream) in enumerate(zip(outputs, streams, strict=True)):
        choice = meta.serializer.choice(index, output)
        if body.return_token_ids:
            choice["token_ids"] = list(output.token_ids)
            choice["prompt_token_ids"] = prompt_token_ids(stream.request)
        yield choice
