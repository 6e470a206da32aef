"""``GET /v1/models`` and ``GET /v1/models/{name}``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from foreword.server.catalogue import Catalogue


def models_router(catalogue: Catalogue) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        """The base model, then the tasks that were made for it."""
        return {"object": "list", "data": await run_in_threadpool(catalogue.entries)}

    # A path, because the name of a base model may hold slashes.
    @router.get("/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        """The base model, a task, or one version of a task as ``task@version``."""
        return await run_in_threadpool(catalogue.entry, name)

    return router
