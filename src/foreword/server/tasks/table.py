"""`TaskTable`: resolves the ``model`` and ``task_id`` of requests to tasks of the bank, and loads them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from foreword.bank.names import check_name, is_name, split_ref
from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import PublishConflict, RequestError, UnknownTask
from foreword.server.operations.auth import ADMINISTRATOR, Caller
from foreword.server.tasks.known_names import KnownNames
from foreword.server.tasks.resident_tasks import ResidentTasks

if TYPE_CHECKING:
    from foreword.bank.bank import Bank

MAX_NAME = 512
"""Characters of a name in a request: more is none, and is not looked up. A base model's may be the path of a folder."""


class TaskTable:
    """Resolves names to tasks of the engine's model, and keeps loaded tasks in memory.

    The served version is looked up at every request, so a task that is published while the server runs is used by the
    next request. Versions never change, so a loaded one is never read again.

    Args:
        engine: serves the base model under its own name; one that reads the bank itself gets tasks without the values
            of their prefixes.
        bank: where tasks are, if anywhere.
        extra_tasks: tasks of this process alone, by name; they hide the bank's.
        prefix_bytes: bound of the prefixes of loaded tasks, in bytes; none if ``None``.
        allow_other_weights: accept tasks made for other weights of the same architecture.
    """

    def __init__(
        self,
        engine: EngineProtocol,
        bank: Bank | None,
        extra_tasks: Mapping[str, Task],
        *,
        prefix_bytes: int | None = None,
        allow_other_weights: bool = False,
    ) -> None:
        self._base = engine.name
        self._identity = engine.identity
        self._bank = bank
        self._without_values = engine.loads_prefixes
        self._extra_tasks = extra_tasks
        self._allow_other_weights = allow_other_weights
        self.known_names = KnownNames(engine.name, extra_tasks, bank)
        self.resident = ResidentTasks(prefix_bytes)
        self._loading: dict[str, asyncio.Task[Task]] = {}
        self._in_split: set[str] = set()
        for name, task in extra_tasks.items():
            check_name(name)
            if name == self._base:
                raise PublishConflict(f"the name {name!r} belongs to the base model; choose another name.")
            self.check_model(task, name)

    async def load_current(self, name: str) -> Task:
        """The version of a task of the bank that is served now, in memory. Raises UnknownTask, ModelMismatch."""
        ref = await run_in_threadpool(partial(self._versioned_ref, name, ADMINISTRATOR, ignore_split=True))
        return self.resident.get(ref) or await self._load_once(ref)

    async def resolve(
        self, model: str | None, task_id: int | str | None, caller: Caller, user: str | None = None
    ) -> Task | None:
        """The task that a request names, or ``None`` for the base model.

        Args:
            user: gets the same version of a task that is split at every request; without one it is drawn anew.

        Raises:
            Forbidden: it is not for this caller, whether or not there is one.
            RequestError: nothing is named, or two different things are.
            UnknownTask: there is no such task or version, or (ExpiredTask) its time to live is over.
            ModelMismatch: the task was made for another model.
        """
        name = self._requested_name(model, task_id)
        caller.check_access(name if name == self._base else split_ref(name)[0])
        if name == self._base:
            return None
        if name in self._extra_tasks:
            return self._extra_tasks[name]
        ref = await run_in_threadpool(self._versioned_ref, name, caller, user)
        task = self.resident.get(ref) or await self._load_once(ref)
        if task.ttl is not None and self._bank is not None:
            await run_in_threadpool(self._bank.record_use, task)
        return task

    def split_version(self, task: Task | None) -> str | None:
        """The version of a task, if it answered beside another one at its last request."""
        return task.version if task is not None and task.ref in self._in_split else None

    def _requested_name(self, model: str | None, task_id: int | str | None) -> str:
        if any(isinstance(each, str) and len(each) > MAX_NAME for each in (model, task_id)):
            raise RequestError(f"the name of a model has at most {MAX_NAME} characters; send the name of a task.")
        if task_id is None:
            if model is None:
                raise RequestError(f"model is missing; send '{self._base}' or the name of a task.")
            return model
        task_name = str(task_id)
        if model is None or model == self._base or self._is_or_is_version_of(task_name, model):
            return task_name
        if self._is_or_is_version_of(model, task_name):
            return model
        raise RequestError(
            f"model is '{model}' and task_id is '{task_name}', which are not the same; send one of them."
        )

    def _is_or_is_version_of(self, name: str, other: str) -> bool:
        """Whether ``name`` is ``other``, or ``other@version``."""
        return name == other or (name != self._base and split_ref(name)[0] == other)

    def _versioned_ref(self, name: str, caller: Caller, user: str | None = None, *, ignore_split: bool = False) -> str:
        """``name@version`` of a task in the bank, with the version that is served (to the user) unless one is named."""
        task, version = split_ref(name)
        if self._bank is None or not is_name(task):
            raise self.known_names.unknown(task, caller)
        try:
            current, split = self._bank.served(task)
        except UnknownTask:
            raise self.known_names.unknown(task, caller) from None
        if version is not None:
            return f"{task}@{self._bank.describe(name)['version']}"
        if ignore_split:
            return f"{task}@{current}"
        ref = f"{task}@{current if split is None else split.choose(task, user)}"
        (self._in_split.discard if split is None else self._in_split.add)(ref)
        return ref

    async def _load_once(self, ref: str) -> Task:
        """Load a version once, however many requests wait for it."""
        if ref not in self._loading:
            loading = asyncio.create_task(self._load(ref))
            loading.add_done_callback(lambda _: self._loading.pop(ref))
            self._loading[ref] = loading
        # Shielded: one client that disconnects must not cancel the loading for the others.
        return await asyncio.shield(self._loading[ref])

    async def _load(self, ref: str) -> Task:
        assert self._bank is not None
        read = self._bank.load_metadata if self._without_values else self._bank.load
        task = await run_in_threadpool(read, ref)
        self.check_model(task)
        self.resident.add(task)
        return task

    def check_model(self, task: Task, name: str | None = None) -> None:
        """Raise ModelMismatch, which calls the task ``name``, for a task of another model."""
        task.prefix.model.check(
            self._identity, f"task '{name or task.name}'", allow_other_weights=self._allow_other_weights
        )
