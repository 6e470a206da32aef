"""`TaskManager`: tasks of the bank while the server runs: published, looked at, rolled back, pinned and removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foreword.bank.bank import Bank, check_free
from foreword.bank.names import split_ref
from foreword.bank.tensor_file import Load
from foreword.core import Kind, Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import PublishConflict
from foreword.server.tasks.catalogue import Catalogue
from foreword.server.tasks.table import TaskTable
from foreword.text.request import static_ids


class TaskManager:
    """What an administrator does with tasks. Every change is seen by the next request, and running ones go on with the
    version that they began with. Methods that are not coroutines wait for the disk or the model: call them in a thread.

    Args:
        engine: computes static prompts.
        bank: where tasks are kept.
        tasks: loads them, and keeps those that are in use in memory.
        catalogue: says which tasks there are.
    """

    def __init__(self, engine: EngineProtocol, bank: Bank, tasks: TaskTable, catalogue: Catalogue) -> None:
        self._engine, self._bank, self._tasks, self._catalogue = engine, bank, tasks, catalogue

    def publish_text(self, name: str, kind: Kind, text: str, *, replace: bool) -> dict[str, Any]:
        """A static prompt, computed by the engine between the steps of what it answers meanwhile.

        Raises PublishConflict, PromptTooLong, UsageError.
        """
        check_free(name, [self._engine.name])
        self._catalogue.check_own(name)
        token_ids = static_ids(self._engine.tokenizer, kind, text)
        prefix = self._engine.prefill(token_ids)
        from foreword.prompts.static import prefilled_task  # which loads torch, as an engine that could do this has

        return self.publish(prefilled_task(name, kind, text, token_ids, prefix), replace=replace)

    @property
    def load(self) -> Load:
        """How the bank reads tensors."""
        return self._bank.load_tensors

    def publish(self, task: Task, *, replace: bool) -> dict[str, Any]:
        """A task as it is; it must be one of the engine's model. Raises PublishConflict, ModelMismatch."""
        check_free(task.name, [self._engine.name])
        self._catalogue.check_own(task.name)
        self._tasks.check_model(task)
        return self.show(self._bank.publish(task, replace=replace, reserved=[self._engine.name]).name)

    def list(self, wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
        """The tasks of the engine's model that are in the bank, by name."""
        return [self.show(name) for name in self._catalogue.names() if wanted(name)]

    def show(self, ref: str) -> dict[str, Any]:
        """One task, or one version of it as ``name@version``. Raises UnknownTask, ModelMismatch."""
        name = split_ref(ref)[0]
        self._catalogue.check_own(name)
        self._catalogue.entry(ref)  # says what is wrong with the name as /v1/models does
        record = self._bank.describe(ref)
        current = self._bank.current(name)
        return {"object": "task", "name": name, "current": current, **_described(record), **self._held(record)} | {
            "versions": self._bank.versions(name)
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
            self._tasks.resident.forget(name)

    async def pin(self, name: str) -> None:
        """Load a task and keep it in memory, with its next versions. Raises UsageError if pinned tasks do not fit."""
        self._catalogue.check_own(name)
        self._tasks.resident.pin(await self._tasks.current(name))

    def unpin(self, name: str) -> None:
        """Let a task leave the memory like any other."""
        self.show(name)
        self._tasks.resident.unpin(name)

    async def warm(self, name: str) -> None:
        """Load a task before its first request."""
        self._catalogue.check_own(name)
        await self._tasks.current(name)

    def _held(self, record: Mapping[str, Any]) -> dict[str, Any]:
        resident = self._tasks.resident
        ref = f"{record['name']}@{record['version']}"
        return {"pinned": resident.is_pinned(record["name"]), "resident": ref in resident}


def _described(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a version's ``task.json`` says of it; the prompt's text is shown to nobody."""
    provenance = record["provenance"]
    return {
        "version": record["version"],
        "kind": record["kind"],
        "method": record["method"],
        "template": record["template"],
        "labels": list((record.get("head") or {}).get("labels") or record["verbalizer"] or []),
        "generation": record["generation"],
        "bytes": sum(entry["size"] for entry in record["files"].values()),
        "created": record["created"],
        "metrics": provenance.get("metrics"),
    }
