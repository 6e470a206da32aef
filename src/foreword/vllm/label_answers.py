"""`LabelAnswers`: tasks that label, answered by Foreword's own routes inside stock ``vllm serve``.

vLLM generates and knows no labels, so a request to such a task does not reach its handlers: Foreword's routes take it,
and score the words of the labels in vLLM's engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from foreword.core import ModelIdentity
from foreword.engine.protocol import ANONYMOUS, Sender
from foreword.engine.request_validator import RequestValidator
from foreword.evaluation.answers import Answers
from foreword.server.openai.chat import chat_router
from foreword.server.openai.completions import completions_router
from foreword.server.openai.serving import OpenAIServing
from foreword.server.operations.admission import Admission
from foreword.server.operations.auth import Caller
from foreword.server.operations.error_handlers import install_error_handlers
from foreword.server.operations.fair_threads import FairThreads
from foreword.server.operations.metrics import Metrics
from foreword.server.tasks.table import TaskTable
from foreword.text.label_scorers import LabelScorer
from foreword.text.prompt import Prompt
from foreword.vllm.scoring import Scoring, word_scorer

MAX_WAITING = 4096


@dataclass(frozen=True)
class ScoringEngine:
    """As much of an `EngineProtocol` as `TaskTable`, `Catalogue` and label answers need.

    Attributes:
        name: under which vLLM serves the base model.
        identity: of the model.
        tokenizer: of the model.
        context: positions that a request may take.
        scoring: asks vLLM.
        loop: the event loop that vLLM's client belongs to.
    """

    name: str
    identity: ModelIdentity
    tokenizer: Any
    context: int | None
    scoring: Scoring
    loop: asyncio.AbstractEventLoop
    loads_prefixes: bool = True
    causal: bool = True
    is_encoder_decoder: bool = False

    def score(self, prompts: Sequence[Prompt], scorer: LabelScorer, *, sender: Sender = ANONYMOUS) -> torch.Tensor:
        """See `EngineProtocol.score`; called from another thread than the loop's."""
        words = word_scorer(scorer)
        limit = self.context if self.context is not None else 1 << 62
        validator = RequestValidator(self.identity, self.context, limit, allow_other_weights=False)
        for prompt in prompts:
            validator.check_prompt(prompt, words.max_extra_tokens)
        scores = self.scoring.score(prompts, words, sender.cache_salt)
        return asyncio.run_coroutine_threadsafe(scores, self.loop).result()


class LabelAnswers:
    """The routes of chat completions and completions, over one bank.

    Args:
        engine: scores.
        tasks: resolves the names of tasks.
    """

    def __init__(self, engine: Any, tasks: TaskTable) -> None:
        threads = FairThreads(4, 4)
        admission = Admission(engine.context, MAX_WAITING, threads)
        serving = OpenAIServing(
            Answers(engine, MAX_WAITING), tasks, Metrics(dict, tasks.resident), admission, admission, threads
        )
        self._app = FastAPI()
        install_error_handlers(self._app)
        for router in (chat_router(serving), completions_router(serving)):
            self._app.include_router(router)

    async def respond(self, http: Request) -> Response:
        """The response to a request whose body was read already."""
        return _Forwarded(self._app, await http.body())


@dataclass(eq=False)
class _Forwarded(Response):
    """A response that another application makes.

    Attributes:
        app: makes it.
        body_sent: by the client.
    """

    app: FastAPI
    body_sent: bytes
    status_code: int = 200
    background: None = None
    body: bytes = b""
    raw_headers: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pending: list[Message] = [{"type": "http.request", "body": self.body_sent, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        inner = {
            key: value for key, value in scope.items() if key not in ("router", "endpoint", "route", "path_params")
        }
        await self.app({**inner, "state": {"caller": Caller(), "log_fields": {}}}, replay, send)
