"""Health and readiness probes, and ``/metrics`` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import Response

from foreword.engine.protocol import EngineProtocol
from foreword.errors import EngineError
from foreword.server.operations.auth import require_admin
from foreword.server.operations.metrics import Metrics
from foreword.version import versions


class Health(BaseModel):
    """The engine by its name on the command line, and the versions of the packages that compute."""

    status: str = "ok"
    engine: str
    versions: dict[str, str]


def probes_router(engine: EngineProtocol, metrics: Metrics, kind: str) -> APIRouter:
    router = APIRouter(tags=["operation"])
    found = Health(engine=kind, versions=versions())

    @router.get("/health")
    async def health() -> Health:
        """The process is up. Needs no key."""
        return found

    @router.get("/ready")
    async def ready() -> dict[str, str]:
        """The engine can answer: the port opens only then, and this fails when it no longer can."""
        if not engine.alive:
            raise EngineError("the engine has stopped; start the server again.")
        return {"status": "ready", "model": engine.name}

    @router.get("/metrics", dependencies=[Depends(require_admin)], response_class=Response)
    async def show() -> Response:
        """Counters, gauges and histograms in the text format of Prometheus."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router
