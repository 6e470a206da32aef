"""`create_app`: one FastAPI application over one engine. The command line serves it; tests do too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi import FastAPI

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import EngineError
from foreword.server import failures
from foreword.server.catalogue import Catalogue
from foreword.server.classify import classify_router
from foreword.server.completions import completions_router
from foreword.server.models import models_router
from foreword.server.tag import tag_router
from foreword.server.tasks import TaskTable
from foreword.version import __version__

if TYPE_CHECKING:
    from foreword.bank.bank import Bank


def create_app(
    engine: EngineProtocol,
    bank: Bank | None,
    *,
    prefix_bytes: int | None = None,
    extra_tasks: Mapping[str, Task] | None = None,
    allow_other_weights: bool = False,
) -> FastAPI:
    """The application; whoever made the engine closes it.

    Args:
        engine: answers; it must be ready, since the port opens when the application does.
        bank: where tasks are looked up, at every request; ``None`` serves the base model and ``extra_tasks``.
        prefix_bytes: bound of the prefixes of loaded tasks that no request uses, in bytes; no bound if ``None``.
        extra_tasks: tasks that live only as long as this process, by the name that requests use; they hide
            tasks of the bank with the same name.
        allow_other_weights: serve tasks made for other weights of the same architecture, as the engine does.

    Raises:
        ModelMismatch: one of ``extra_tasks`` was made for another model.
    """
    extra = dict(extra_tasks or {})
    tasks = TaskTable(engine, bank, extra, prefix_bytes=prefix_bytes, allow_other_weights=allow_other_weights)
    catalogue = Catalogue(engine, bank, extra, allow_other_weights=allow_other_weights)
    # Without redirects a wrong path is a 404 in OpenAI's shape, and no POST is sent twice.
    app = FastAPI(title="Foreword", version=__version__, redirect_slashes=False)
    failures.install(app)
    app.include_router(models_router(catalogue))
    app.include_router(completions_router(engine, tasks))
    app.include_router(classify_router(engine, tasks))
    app.include_router(tag_router(engine, tasks))
    _add_probes(app, engine)
    return app


def _add_probes(app: FastAPI, engine: EngineProtocol) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process is up."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        """The engine can answer: the port opens only then, and this fails when it no longer can."""
        if not engine.alive:
            raise EngineError("the engine has stopped; start the server again.")
        return {"status": "ready", "model": engine.name}
