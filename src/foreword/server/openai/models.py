"""``GET /v1/models`` and ``GET /v1/models/{name}``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from foreword.server.operations.auth import CurrentCaller
from foreword.server.tasks.catalogue import Catalogue


def models_router(catalogue: Catalogue) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["models"])

    @router.get("/models")
    async def list_models(caller: CurrentCaller) -> dict[str, Any]:
        """The base model, then the tasks that were made for it; those that the key reaches."""
        models = await run_in_threadpool(catalogue.models)
        return {"object": "list", "data": [model for model in models if caller.can_access(model["id"])]}

    # A path, because the name of a base model may hold slashes.
    @router.get("/models/{name:path}")
    async def show_model(name: str, caller: CurrentCaller) -> dict[str, Any]:
        """The base model, a task, or one version of a task as ``task@version``."""
        caller.check_access(catalogue.without_version(name))
        return await run_in_threadpool(catalogue.model, name)

    return router
