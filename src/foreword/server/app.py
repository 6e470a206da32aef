"""`create_app`: the FastAPI application over one engine. ``foreword serve``, the demo, benchmarks and tests call it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import ForewordError
from foreword.evaluation.answers import Answers
from foreword.server.openai.chat import chat_router
from foreword.server.openai.completions import completions_router
from foreword.server.openai.embeddings import embeddings_router
from foreword.server.openai.models import models_router
from foreword.server.openai.responses import responses_router
from foreword.server.openai.serving import OpenAIServing
from foreword.server.openai.tokenize import tokenize_router
from foreword.server.operations.access_log import AccessLog
from foreword.server.operations.admission import Admission
from foreword.server.operations.api_keys import ApiKeys
from foreword.server.operations.auth import Authenticator, AuthMiddleware
from foreword.server.operations.content_types import ContentTypes
from foreword.server.operations.error_handlers import ERROR_RESPONSES, install_error_handlers
from foreword.server.operations.fair_threads import FairThreads
from foreword.server.operations.front_door import front_door_router
from foreword.server.operations.metrics import Metrics
from foreword.server.operations.origins import LOCAL_HOSTS, KnownHosts, OriginGuard
from foreword.server.operations.probes import probes_router
from foreword.server.operations.request_limits import BODY_TIMEOUT, MAX_BODY_BYTES, MAX_JSON_BYTES, RequestLimits
from foreword.server.tasks.catalogue import Catalogue
from foreword.server.tasks.classify import classify_router
from foreword.server.tasks.manager import TaskManager
from foreword.server.tasks.routes import UPLOAD_PATHS, tasks_router
from foreword.server.tasks.scoring import ScoringService
from foreword.server.tasks.table import TaskTable
from foreword.server.tasks.tag import tag_router
from foreword.server.ui.mount import PATH, has_ui
from foreword.version import __version__

if TYPE_CHECKING:
    from foreword.bank.bank import Bank

PREPARING_THREADS = 4, 2
"""Threads that tokenize, render and read the bank for lists, and of them those of one key."""
SCORING_THREADS = 64, 2
"""Threads that wait for scores, of which the engine computes one batch at a time, and of them those of one key."""
COMPILING_THREADS = 4, 2
"""Threads that compile constraints, and of them those of one key."""
SAVE_INTERVAL = 5.0
"""Seconds between two writings of the quotas' usage file."""
PRUNE_INTERVAL = 600.0
"""Seconds between two searches for tasks that have expired."""
PRUNE_LIMIT = 100
"""Tasks that one of them removes at most."""


def create_app(
    engine: EngineProtocol,
    bank: Bank | None,
    *,
    prefix_bytes: int | None = None,
    extra_tasks: Mapping[str, Task] | None = None,
    allow_other_weights: bool = False,
    authenticator: Authenticator | None = None,
    timeout: float | None = None,
    max_waiting: int = 4096,
    model_defaults: Mapping[str, Any] | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_json_bytes: int = MAX_JSON_BYTES,
    timeout_body: float = BODY_TIMEOUT,
    known_hosts: KnownHosts = LOCAL_HOSTS,
    cors_origins: Sequence[str] = (),
    ui: bool = False,
    engine_kind: str = "embedded",
) -> FastAPI:
    """The application. It does not close the engine.

    A route family is a function that returns an `APIRouter`, in a file of its own, and an entry of ``routers`` below.

    Args:
        engine: generates and scores; it must be ready, since the port opens when the application does.
        bank: where tasks are looked up, at every request; ``None`` serves the base model and ``extra_tasks``.
        prefix_bytes: bound of the prefixes of loaded tasks that no request uses, in bytes; no bound if ``None``.
        extra_tasks: tasks that live only as long as this process, by the name that requests use; they hide
            tasks of the bank with the same name.
        allow_other_weights: serve tasks made for other weights of the same architecture, as the engine does.
        authenticator: has the API keys; without one, every request may do everything.
        timeout: seconds after which a generation is ended; no bound if ``None``.
        max_waiting: answers that may wait; more are answered 429, and requests for more 400.
        model_defaults: sampling parameters of the base model and of static tasks where neither a request nor a task
            says; see `foreword.models.generation_config.generation_config`.
        max_body_bytes: bound of an upload.
        max_json_bytes: bound of any other body of a request.
        timeout_body: seconds in which a body must have come.
        known_hosts: names by which clients may ask; localhost and every address by default.
        cors_origins: origins whose pages may send requests from a browser; none by default.
        ui: also mount the page at ``/ui``, which needs the extra ``[ui]``.
        engine_kind: what ``--engine`` calls the engine, for ``/health``.

    Raises:
        ModelMismatch: one of ``extra_tasks`` was made for another model.
        UsageError: ``ui`` without its extra.
    """
    extra = extra_tasks if extra_tasks is not None else {}
    authenticator = authenticator or Authenticator(ApiKeys())
    tasks = TaskTable(engine, bank, extra, prefix_bytes=prefix_bytes, allow_other_weights=allow_other_weights)
    defaults = dict(model_defaults or {})
    catalogue = Catalogue(engine, bank, extra, allow_other_weights=allow_other_weights, model_defaults=defaults)
    metrics = Metrics(engine.statistics, tasks.resident)
    manager = TaskManager(engine, bank, tasks, catalogue) if bank is not None else None
    threads = FairThreads(*PREPARING_THREADS)
    admission = Admission(engine.context, max_waiting, threads, lambda: engine.statistics().get("waiting", 0))
    scoring = Admission(engine.context, max_waiting, FairThreads(*SCORING_THREADS))
    compiling = FairThreads(*COMPILING_THREADS)
    answers = Answers(engine, max_waiting, defaults)
    serving = OpenAIServing(answers, tasks, metrics, admission, scoring, compiling, timeout)
    scoring_service = ScoringService(engine, tasks, metrics, scoring)
    # In the order of the OpenAPI page.
    routers = [
        models_router(catalogue, threads),
        chat_router(serving),
        completions_router(serving),
        responses_router(serving),
        embeddings_router(scoring_service),
        classify_router(scoring_service),
        tag_router(scoring_service),
        tokenize_router(engine, tasks, admission),
        tasks_router(manager, threads),
        probes_router(engine, metrics, engine_kind),
        front_door_router(engine.name, ui=ui, installed=has_ui()),
    ]
    # Without redirects a wrong path is a 404 in OpenAI's shape, and no POST is sent twice.
    app = FastAPI(
        title="Foreword",
        version=__version__,
        redirect_slashes=False,
        lifespan=_lifespan(authenticator, manager),
        responses=ERROR_RESPONSES,
    )
    install_error_handlers(app)
    for router in routers:
        app.include_router(router)
    # The last one added is the first to see a request.
    app.add_middleware(ContentTypes, upload_paths=(*UPLOAD_PATHS, f"{PATH}/gradio_api/upload"))
    app.add_middleware(AuthMiddleware, authenticator=authenticator)
    app.add_middleware(
        RequestLimits, max_body_bytes=max_body_bytes, max_json_bytes=max_json_bytes, timeout_body=timeout_body
    )
    app.add_middleware(OriginGuard, known_hosts=known_hosts, allowed_origins=cors_origins)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
        )
    app.add_middleware(AccessLog, metrics=metrics, parts_of_page=(f"{PATH}/", "/favicon.ico"))
    if ui:
        from foreword.server.ui.mount import mount_ui

        mount_ui(app, engine.name)
    return app


def _lifespan(
    authenticator: Authenticator, manager: TaskManager | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """A lifespan that saves what keys have used of their quotas, every few seconds and at shutdown, and that removes
    expired tasks now and then."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        jobs = [asyncio.create_task(_repeat(SAVE_INTERVAL, authenticator.save_usage))]
        if manager is not None:
            jobs.append(asyncio.create_task(_repeat(PRUNE_INTERVAL, partial(manager.prune, PRUNE_LIMIT))))
        try:
            yield
        finally:
            for job in jobs:
                job.cancel()
            authenticator.save_usage()

    return lifespan


async def _repeat(seconds: float, job: Callable[[], None]) -> None:
    """Do a job in a worker thread again and again; an error is logged, and it is tried the next time."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await run_in_threadpool(job)
        except (ForewordError, OSError) as error:
            logging.getLogger(__name__).warning("%s", error)
