"""``/v1/tasks``: tasks come, change and go while the server runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import APIRouter, Depends
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, Response

from foreword.bank.names import check_name, split_ref
from foreword.errors import RequestError, VerbalizerError
from foreword.interop.prefix_task import prefix_task
from foreword.server.openai.openapi import PUBLISHED, TASK, TASKS
from foreword.server.openai.schema import RollbackRequest, TaskRequest
from foreword.server.operations.auth import Asking, administrator
from foreword.server.tasks.manager import TaskManager

_PREFIX_FIELDS = ("name", "template", "verbalizer", "replace")
_MULTIPART: Mapping[str, Any] = {
    "type": "object",
    "required": ["name", "prefix"],
    "properties": {
        "name": {"type": "string"},
        "prefix": {"type": "string", "format": "binary", "description": "A prefix.safetensors file."},
        "template": {"type": "string"},
        "verbalizer": {"type": "string", "description": "A JSON object of labels and words."},
        "replace": {"type": "boolean"},
    },
}
_BODIES = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": TaskRequest.model_json_schema()},
            "multipart/form-data": {"schema": _MULTIPART},
        },
    }
}


def tasks_router(manager: TaskManager | None) -> APIRouter:
    """Routes of the tasks: every key looks at those that it reaches, an administrator's changes them. Without a bank
    there is nothing to manage, and they say so."""
    router = APIRouter(prefix="/v1/tasks", tags=["tasks"])
    changes = [Depends(administrator)]

    def managed() -> TaskManager:
        if manager is None:
            raise RequestError("this server has no bank, so its tasks cannot change; start it with one.")
        return manager

    @router.get("", responses=TASKS)
    async def list_tasks(caller: Asking) -> dict[str, Any]:
        """All tasks of this model that are in the bank."""
        return {"object": "list", "data": await run_in_threadpool(managed().list, caller.reaches)}

    @router.post(
        "", status_code=201, openapi_extra=_BODIES, dependencies=changes, response_model=None, responses=PUBLISHED
    )
    async def publish(http: HttpRequest) -> Response:
        """Publish a static prompt from its text, or an uploaded prefix; a name that is taken gets a new version."""
        if http.headers.get("content-type", "").startswith("multipart/form-data"):
            return JSONResponse(await _uploaded(managed(), http), status_code=201)
        body = _parsed(await http.body())
        kind, text = ("system", body.system) if body.system is not None else ("prompt", body.prompt)
        job = partial(managed().publish_text, body.name, kind, text or "", replace=bool(body.replace))
        return JSONResponse(await run_in_threadpool(job), status_code=201)

    @router.get("/{name}", responses=TASK)
    async def show(name: str, caller: Asking) -> dict[str, Any]:
        """One task, or one version as `name@version`."""
        caller.check(split_ref(name)[0])
        return await run_in_threadpool(managed().show, name)

    @router.delete("/{name}", dependencies=changes)
    async def remove(name: str) -> dict[str, Any]:
        """Remove a task, or one version that is not served; running requests finish with it."""
        await run_in_threadpool(managed().remove, name)
        return {"object": "task.deleted", "name": name, "deleted": True}

    @router.post("/{name}/rollback", dependencies=changes, responses=TASK)
    async def rollback(name: str, body: RollbackRequest | None = None) -> dict[str, Any]:
        """Serve the version before, or the one that is named."""
        return await run_in_threadpool(managed().rollback, name, body.version if body is not None else None)

    @router.post("/{name}/pin", dependencies=changes, responses=TASK)
    async def pin(name: str) -> dict[str, Any]:
        """Load a task and keep it in memory."""
        await managed().pin(name)
        return await run_in_threadpool(managed().show, name)

    @router.post("/{name}/unpin", dependencies=changes, responses=TASK)
    async def unpin(name: str) -> dict[str, Any]:
        """Let a task leave the memory when others need its place."""
        await run_in_threadpool(managed().unpin, name)
        return await run_in_threadpool(managed().show, name)

    @router.post("/{name}/warm", dependencies=changes, responses=TASK)
    async def warm(name: str) -> dict[str, Any]:
        """Load a task before its first request."""
        await managed().warm(name)
        return await run_in_threadpool(managed().show, name)

    return router


def _parsed(data: bytes) -> TaskRequest:
    try:
        return TaskRequest.model_validate_json(data)
    except ValidationError as error:
        where = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise RequestValidationError(where) from error


async def _uploaded(manager: TaskManager, http: HttpRequest) -> dict[str, Any]:
    async with http.form(max_files=1, max_fields=len(_PREFIX_FIELDS)) as form:
        file = form.get("prefix")
        if not isinstance(file, UploadFile):
            raise RequestError("prefix is missing; send a prefix.safetensors file.")
        if unknown := sorted(form.keys() - {"prefix", *_PREFIX_FIELDS}):
            raise RequestError(f"{unknown[0]} is no field of an upload; send prefix, {', '.join(_PREFIX_FIELDS)}.")
        fields = {name: str(form[name]) for name in _PREFIX_FIELDS if name in form}
        with TemporaryDirectory() as folder:
            path = Path(folder) / "prefix.safetensors"
            with path.open("wb") as target:
                while data := await file.read(1 << 20):
                    target.write(data)
            return await run_in_threadpool(_published, manager, path, fields)


def _published(manager: TaskManager, path: Path, fields: Mapping[str, str]) -> dict[str, Any]:
    name = fields.get("name", "")
    check_name(name)
    task = prefix_task(name, path, fields.get("template"), _words(fields.get("verbalizer")), manager.load)
    return manager.publish(task, replace=fields.get("replace", "").lower() in ("1", "true", "yes"))


def _words(source: str | None) -> Mapping[str, object] | None:
    """A client's verbalizer is JSON, never the name of a file here."""
    if source is None:
        return None
    try:
        found = json.loads(source)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise VerbalizerError('verbalizer must be a JSON object of labels and words, such as {"good": " great"}.')
    return found
