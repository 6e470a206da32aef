"""`create_app`: one FastAPI application over one engine. The command line serves it; tests do too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.server.openai import openapi
from foreword.server.openai.completions import Completions, completions_router
from foreword.server.openai.models import models_router
from foreword.server.openai.tokenize import tokenize_router
from foreword.server.operations import error_handlers
from foreword.server.operations.access_log import AccessLog
from foreword.server.operations.api_keys import ApiKeys
from foreword.server.operations.auth import Authenticator, AuthMiddleware
from foreword.server.operations.metrics import Metrics
from foreword.server.operations.probes import probes_router
from foreword.server.operations.request_limits import RequestLimits
from foreword.server.tasks.catalogue import Catalogue
from foreword.server.tasks.classify import classify_router
from foreword.server.tasks.manager import TaskManager
from foreword.server.tasks.routes import tasks_router
from foreword.server.tasks.table import TaskTable
from foreword.server.tasks.tag import tag_router
from foreword.version import __version__

if TYPE_CHECKING:
    from foreword.bank.bank import Bank

BODY_BYTES = 64 << 20
SAVE_SECONDS = 5.0


def create_app(
    engine: EngineProtocol,
    bank: Bank | None,
    *,
    prefix_bytes: int | None = None,
    extra_tasks: Mapping[str, Task] | None = None,
    allow_other_weights: bool = False,
    gate: Authenticator | None = None,
    answer_seconds: float | None = None,
    body_bytes: int = BODY_BYTES,
    origins: Sequence[str] = (),
    ui: bool = False,
) -> FastAPI:
    """The application; whoever made the engine closes it.

    Args:
        engine: answers; it must be ready, since the port opens when the application does.
        bank: where tasks are looked up, at every request; ``None`` serves the base model and ``extra_tasks``.
        prefix_bytes: bound of the prefixes of loaded tasks that no request uses, in bytes; no bound if ``None``.
        extra_tasks: tasks that live only as long as this process, by the name that requests use; they hide
            tasks of the bank with the same name.
        allow_other_weights: serve tasks made for other weights of the same architecture, as the engine does.
        gate: who may ask; everybody may do everything without one.
        answer_seconds: an answer that takes longer is ended; no bound if ``None``.
        body_bytes: of a request's body at most.
        origins: web pages that may ask from a browser; none without.
        ui: also the page at ``/ui``, which needs the extra ``[ui]``.

    Raises:
        ModelMismatch: one of ``extra_tasks`` was made for another model.
        UsageError: ``ui`` without its extra.
    """
    extra = dict(extra_tasks or {})
    gate = gate or Authenticator(ApiKeys())
    tasks = TaskTable(engine, bank, extra, prefix_bytes=prefix_bytes, allow_other_weights=allow_other_weights)
    catalogue = Catalogue(engine, bank, extra, allow_other_weights=allow_other_weights)
    metrics = Metrics(engine.statistics, tasks.resident)
    manager = TaskManager(engine, bank, tasks, catalogue) if bank is not None else None
    # Without redirects a wrong path is a 404 in OpenAI's shape, and no POST is sent twice.
    app = FastAPI(
        title="Foreword",
        version=__version__,
        redirect_slashes=False,
        lifespan=_saving(gate),
        responses=openapi.EVERYWHERE,
    )
    error_handlers.install_error_handlers(app)
    app.include_router(models_router(catalogue))
    app.include_router(completions_router(Completions(engine, tasks, metrics, answer_seconds)))
    app.include_router(classify_router(engine, tasks, metrics))
    app.include_router(tag_router(engine, tasks, metrics))
    app.include_router(tokenize_router(engine, tasks))
    app.include_router(tasks_router(manager))
    app.include_router(probes_router(engine, metrics))
    # The last one added is the first to see a request.
    app.add_middleware(AuthMiddleware, gate=gate)
    app.add_middleware(RequestLimits, body_bytes=body_bytes)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(AccessLog, metrics=metrics)
    if ui:
        from foreword.server.ui.mount import mount_ui

        mount_ui(app, engine.name)
    return app


def _saving(gate: Authenticator) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Write down what is used of quotas, once in a while and at the end."""

    async def save() -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            await run_in_threadpool(gate.save)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        saving = asyncio.create_task(save())
        try:
            yield
        finally:
            saving.cancel()
            gate.save()

    return lifespan
