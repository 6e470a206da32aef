"""``GET /v1/models`` and ``GET /v1/models/{name}``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from foreword.server.operations.auth import CurrentCaller
from foreword.server.operations.fair_threads import FairThreads
from foreword.server.tasks.catalogue import Catalogue


def models_router(catalogue: Catalogue, threads: FairThreads) -> APIRouter:
    """Args:
    threads: read the bank.
    """
    router = APIRouter(prefix="/v1", tags=["models"])

    @router.get("/models")
    async def list_models(caller: CurrentCaller) -> dict[str, Any]:
        """The base model, then the tasks that were made for it; those that the key reaches."""
        return {"object": "list", "data": await threads.run(caller.name, catalogue.models, caller.can_access)}

    # A path, because the name of a base model may hold slashes.
    @router.get("/models/{name:path}")
    async def show_model(name: str, caller: CurrentCaller) -> dict[str, Any]:
        """The base model, a task, or one version of a task as ``task@version``."""
        caller.check_access(catalogue.without_version(name))
        return await threads.run(caller.name, catalogue.model, name, caller)

    return router
