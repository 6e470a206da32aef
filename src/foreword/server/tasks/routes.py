"""``/v1/tasks``: list, publish, roll back, pin and remove tasks while the server runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
from foreword.bank.time_to_live import parse_duration
from foreword.core.json_reader import parse_json
from foreword.errors import CorruptFile, RequestError, VerbalizerError
from foreword.evaluation.sampling_params import generation_defaults
from foreword.interop.prefix_task import prefix_task
from foreword.server.operations.auth import CurrentCaller, current_caller, require_admin
from foreword.server.operations.fair_threads import FairThreads
from foreword.server.operations.json_body import JsonBodyRoute
from foreword.server.tasks.manager import TaskManager
from foreword.server.tasks.schema import (
    PUBLISH_BODIES,
    PUBLISHED_RESPONSE,
    TASK_LIST_RESPONSE,
    TASK_RESPONSE,
    UPLOAD_FIELDS,
    RollbackRequest,
    TaskRequest,
)

PATH = "/v1/tasks"
UPLOAD_PATHS = (PATH,)
"""Paths that take a multipart body."""


def tasks_router(manager: TaskManager | None, threads: FairThreads) -> APIRouter:
    """Every key reads the tasks that it has access to; only an administrator's changes them.

    Without a manager, which a server without a bank has none of, every route raises RequestError.
    """
    router = APIRouter(prefix=PATH, tags=["tasks"], route_class=JsonBodyRoute)
    admin_only = [Depends(require_admin)]

    def require_manager() -> TaskManager:
        if manager is None:
            raise RequestError("this server has no bank, so its tasks cannot change; start it with one.")
        return manager

    @router.get("", responses=TASK_LIST_RESPONSE)
    async def list_tasks(caller: CurrentCaller) -> dict[str, Any]:
        """All tasks of this model that are in the bank."""
        return {"object": "list", "data": await threads.run(caller.name, require_manager().list, caller.can_access)}

    @router.post(
        "",
        status_code=201,
        openapi_extra=PUBLISH_BODIES,
        dependencies=admin_only,
        response_model=None,
        responses=PUBLISHED_RESPONSE,
    )
    async def publish(http: HttpRequest) -> Response:
        """Publish a static prompt from its text, or an uploaded prefix; a name that is taken gets a new version."""
        if http.headers.get("content-type", "").startswith("multipart/form-data"):
            return JSONResponse(await _publish_upload(require_manager(), http), status_code=201)
        body = _parse_body(await http.body())
        kind, text = ("system", body.system) if body.system is not None else ("prompt", body.prompt)
        publish_text, generation = require_manager().publish_text, body.generation
        task = await run_in_threadpool(
            publish_text,
            body.name,
            kind,
            text or "",
            generation=generation,
            replace=bool(body.replace),
            ttl=body.ttl_seconds,
            caller=current_caller(http),
        )
        return JSONResponse(task, status_code=201)

    @router.get("/{name}", responses=TASK_RESPONSE)
    async def show(name: str, caller: CurrentCaller) -> dict[str, Any]:
        """One task, or one version as `name@version`."""
        caller.check_access(split_ref(name)[0])
        return await run_in_threadpool(require_manager().show, name, caller)

    @router.delete("/{name}", dependencies=admin_only)
    async def remove(name: str) -> dict[str, Any]:
        """Remove a task, or one version that is not served; running requests finish with it."""
        await run_in_threadpool(require_manager().remove, name)
        return {"object": "task.deleted", "name": name, "deleted": True}

    @router.post("/{name}/rollback", dependencies=admin_only, responses=TASK_RESPONSE)
    async def rollback(name: str, body: RollbackRequest | None = None) -> dict[str, Any]:
        """Serve the version before, or the one that is named."""
        return await run_in_threadpool(require_manager().rollback, name, body.version if body is not None else None)

    @router.post("/{name}/pin", dependencies=admin_only, responses=TASK_RESPONSE)
    async def pin(name: str) -> dict[str, Any]:
        """Load a task and keep it in memory."""
        await require_manager().pin(name)
        return await run_in_threadpool(require_manager().show, name)

    @router.post("/{name}/unpin", dependencies=admin_only, responses=TASK_RESPONSE)
    async def unpin(name: str) -> dict[str, Any]:
        """Let a task leave the memory when others need its place."""
        await run_in_threadpool(require_manager().unpin, name)
        return await run_in_threadpool(require_manager().show, name)

    @router.post("/{name}/warm", dependencies=admin_only, responses=TASK_RESPONSE)
    async def warm(name: str) -> dict[str, Any]:
        """Load a task before its first request."""
        await require_manager().warm(name)
        return await run_in_threadpool(require_manager().show, name)

    return router


def _parse_body(data: bytes) -> TaskRequest:
    try:
        return TaskRequest.model_validate_json(data)
    except ValidationError as error:
        errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise RequestValidationError(errors) from error


async def _publish_upload(manager: TaskManager, http: HttpRequest) -> dict[str, Any]:
    async with http.form(max_files=1, max_fields=len(UPLOAD_FIELDS)) as form:
        file = form.get("prefix")
        if not isinstance(file, UploadFile):
            raise RequestError("prefix is missing; send a prefix.safetensors file.")
        if unknown := sorted(form.keys() - {"prefix", *UPLOAD_FIELDS}):
            raise RequestError(f"{unknown[0]} is no field of an upload; send prefix, {', '.join(UPLOAD_FIELDS)}.")
        fields = {name: str(form[name]) for name in UPLOAD_FIELDS if name in form}
        with TemporaryDirectory() as folder:
            path = Path(folder) / "prefix.safetensors"
            with path.open("wb") as target:
                while data := await file.read(1 << 20):
                    target.write(data)
            return await run_in_threadpool(_publish_file, manager, path, fields)


def _publish_file(manager: TaskManager, path: Path, fields: Mapping[str, str]) -> dict[str, Any]:
    name = fields.get("name", "")
    check_name(name)
    verbalizer = _parse_verbalizer(fields.get("verbalizer"))
    try:
        task = prefix_task(name, path, fields.get("template"), verbalizer, manager.load_tensors)
    except CorruptFile as error:  # of the client, who knows nothing of where it lies here
        raise RequestError(str(error).replace(str(path), "the uploaded prefix")) from None
    ttl = parse_duration(fields["ttl"]) if "ttl" in fields else None
    task = dataclasses.replace(task, generation=_parse_generation(fields.get("generation")), ttl=ttl)
    return manager.publish(task, replace=fields.get("replace", "").lower() in ("1", "true", "yes"))


def _parse_generation(source: str | None) -> Mapping[str, Any]:
    """The generation defaults of an upload: a JSON object."""
    try:
        given = {} if source is None else parse_json(source)
        return generation_defaults(**given)
    except (ValueError, TypeError):
        raise RequestError(
            'generation must be a JSON object of temperature, top_p, top_k, max_tokens and stop, as {"top_p": 0.9}.'
        ) from None


def _parse_verbalizer(source: str | None) -> Mapping[str, object] | None:
    """The verbalizer of an upload: a JSON object, and never the name of a file of the server's."""
    if source is None:
        return None
    try:
        verbalizer = parse_json(source)
    except ValueError:
        verbalizer = None
    if not isinstance(verbalizer, dict):
        raise VerbalizerError('verbalizer must be a JSON object of labels and words, such as {"good": " great"}.')
    return verbalizer
