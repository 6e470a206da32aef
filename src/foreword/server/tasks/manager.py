"""`TaskManager`: publish, describe, roll back, pin and remove tasks of the bank while the server runs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

from foreword.bank.bank import Bank, check_free
from foreword.bank.names import split_ref
from foreword.bank.tensor_file import TensorLoader
from foreword.bank.time_to_live import format_time
from foreword.core import Kind, Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import PublishConflict
from foreword.server.operations.admission import check_characters
from foreword.server.operations.auth import ADMINISTRATOR, Caller
from foreword.server.tasks.catalogue import Catalogue
from foreword.server.tasks.table import TaskTable
from foreword.text.task_prompts import static_token_ids

LOGGER = logging.getLogger(__name__)


class TaskManager:
    """The operations behind ``/v1/tasks``.

    The next request sees every change, and running ones keep the version that they began with. Methods that are not
    coroutines wait for the disk or the engine: call them in a worker thread.

    Args:
        engine: computes the prefixes of static prompts.
        bank: stores the tasks.
        tasks: loads them into memory.
        catalogue: knows which of them are of the engine's model.
    """

    def __init__(self, engine: EngineProtocol, bank: Bank, tasks: TaskTable, catalogue: Catalogue) -> None:
        self._engine, self._bank, self._tasks, self._catalogue = engine, bank, tasks, catalogue

    def publish_text(
        self,
        name: str,
        kind: Kind,
        text: str,
        *,
        generation: Mapping[str, Any] | None = None,
        replace: bool,
        ttl: int | None = None,
        caller: Caller = ADMINISTRATOR,
    ) -> dict[str, Any]:
        """Publish a static prompt; the engine computes its prefix between the steps of running requests.

        Args:
            ttl: seconds that the task lives without being used; ``None`` for ever.
            caller: whose tokens it costs.

        Raises PublishConflict, PromptTooLong, UsageError, LimitReached.
        """
        check_free(name, [self._engine.name])
        self._catalogue.check_in_bank(name)
        check_characters(len(text), self._engine.context)
        token_ids = static_token_ids(self._engine.tokenizer, kind, text)
        caller.count_tokens(len(token_ids))
        prefix = self._engine.prefill(token_ids)
        from foreword.prompts.static import prefilled_task  # which loads torch, as an engine that could do this has

        task = prefilled_task(name, kind, text, token_ids, prefix)
        return self.publish(dataclasses.replace(task, generation=generation or {}, ttl=ttl), replace=replace)

    @property
    def load_tensors(self) -> TensorLoader:
        """How the bank reads tensors."""
        return self._bank.load_tensors

    def publish(self, task: Task, *, replace: bool) -> dict[str, Any]:
        """Publish a task of the engine's model. Raises PublishConflict, ModelMismatch."""
        check_free(task.name, [self._engine.name])
        self._catalogue.check_in_bank(task.name)
        self._tasks.check_model(task)
        return self.show(self._bank.publish(task, replace=replace, reserved=[self._engine.name]).name)

    def list(self, can_access: Callable[[str], bool]) -> list[dict[str, Any]]:
        """The tasks of the engine's model that are in the bank, by name, and that ``can_access`` accepts."""
        return [self.show(name) for name in self._catalogue.bank_tasks(can_access)]

    def show(self, ref: str, caller: Caller = ADMINISTRATOR) -> dict[str, Any]:
        """The JSON object of one task, or of one version as ``name@version``. Raises UnknownTask, ModelMismatch.

        Args:
            caller: whom an error tells of near names.
        """
        name = split_ref(ref)[0]
        self._catalogue.check_in_bank(name)
        self._catalogue.check_known(ref, caller)  # raises as /v1/models does for a wrong name
        description, split, expires = self._bank.describe(ref), self._bank.split(name), self._bank.expires(ref)
        return {
            "object": "task",
            "name": name,
            "current": self._bank.current(name),
            "split": None if split is None else dict(split.weights),
            **_version_fields(description),
            "expires": None if expires is None else format_time(expires),
            "expired": self._bank.has_expired(ref),
            "pinned": self._tasks.resident.is_pinned(name),
            "resident": f"{name}@{description['version']}" in self._tasks.resident,
            "versions": self._bank.versions(name),
        }

    def rollback(self, name: str, version: str | None) -> dict[str, Any]:
        """Serve the version before the one that is served, or the one that is named. Raises UnknownTask."""
        self.show(name)
        self._bank.rollback(name, version)
        return self.show(name)

    def remove(self, ref: str) -> None:
        """Remove a task, or one version that is not served. Raises UnknownTask, UsageError, PublishConflict."""
        self.show(ref)
        name, version = split_ref(ref)
        if version is None and self._tasks.resident.is_pinned(name):
            raise PublishConflict(f"task '{name}' is pinned; POST /v1/tasks/{name}/unpin first.")
        self._bank.remove(name, version)
        if version is None:
            self._tasks.resident.remove(name)

    def prune(self, limit: int) -> None:
        """Remove expired tasks of the bank, whatever model they are of, but no pinned ones; at most ``limit``."""
        names = [name for name in self._bank.names() if not self._tasks.resident.is_pinned(name)]
        for name in self._bank.prune(names, limit):
            self._tasks.resident.remove(name)
            LOGGER.info("removed '%s', whose time to live is over", name)

    async def pin(self, name: str) -> None:
        """Load a task and keep it in memory, with its next versions. Raises UsageError if pinned tasks do not fit."""
        self._catalogue.check_in_bank(name)
        self._tasks.resident.pin(await self._tasks.load_current(name))

    def unpin(self, name: str) -> None:
        """Let a task be evicted like any other."""
        self.show(name)
        self._tasks.resident.unpin(name)

    async def warm(self, name: str) -> None:
        """Load a task before its first request."""
        self._catalogue.check_in_bank(name)
        await self._tasks.load_current(name)


def _version_fields(description: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a version's ``task.json`` that clients see; the text of a static prompt is none of them."""
    return {
        "version": description["version"],
        "kind": description["kind"],
        "method": description["method"],
        "template": description["template"],
        "labels": list((description.get("head") or {}).get("labels") or description["verbalizer"] or []),
        "generation": description["generation"],
        "bytes": sum(entry["size"] for entry in description["files"].values()),
        "created": description["created"],
        "ttl": description.get("ttl"),
        "metrics": description["provenance"].get("metrics"),
        **{key: description[key] for key in ("label_field",) if key in description},
    }
