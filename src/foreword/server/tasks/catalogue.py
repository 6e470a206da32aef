"""`Catalogue`: the entries of ``GET /v1/models``, read from the bank without loading a tensor."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from foreword.bank.names import is_name, split_ref
from foreword.core import ModelIdentity, Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import CorruptFile, ModelMismatch, PublishConflict, UnknownTask
from foreword.server.operations.auth import Caller
from foreword.server.tasks.known_names import KnownNames

if TYPE_CHECKING:
    from foreword.bank.bank import Bank


class Catalogue:
    """The base model and the tasks that were made for it. Methods read the bank, so call them in a worker thread.

    Args:
        engine: serves the base model.
        bank: where tasks are, if anywhere.
        extra_tasks: tasks of this process alone, by name; they hide the bank's.
        allow_other_weights: list tasks made for other weights of the same architecture.
        model_defaults: sampling parameters of the base model, which its entry shows.
    """

    def __init__(
        self,
        engine: EngineProtocol,
        bank: Bank | None,
        extra_tasks: Mapping[str, Task],
        *,
        allow_other_weights: bool = False,
        model_defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self._base = engine.name
        self._identity = engine.identity
        self._bank = bank
        self._extra_tasks = extra_tasks
        self._allow_other_weights = allow_other_weights
        self._model_defaults = dict(model_defaults or {})
        self._known_names = KnownNames(engine.name, extra_tasks, bank)
        self._started = int(time.time())
        self._descriptions: dict[str, tuple[str, dict[str, Any]]] = {}  # of served versions, by task

    def models(self, can_access: Callable[[str], bool] = lambda name: True) -> list[dict[str, Any]]:
        """The base model, then the tasks of this model by name; those that ``can_access`` accepts, and nothing else is
        read."""
        names = filter(can_access, sorted({*self._extra_tasks, *self._bank_names()}))
        base = [self._base_entry()] if can_access(self._base) else []
        return [*base, *self._task_entries(names, expired=False)]

    def model(self, name: str, caller: Caller) -> dict[str, Any]:
        """One entry, by name or ``name@version``. Raises UnknownTask, ExpiredTask, ModelMismatch."""
        entry = self._found_entry(name, caller)
        if self._bank is not None and name != self._base and name not in self._extra_tasks:
            self._bank.check_alive(name)
        return entry

    def check_known(self, name: str, caller: Caller) -> None:
        """Raise UnknownTask or ModelMismatch for a name that is none of this model's; that of an expired task is."""
        self._found_entry(name, caller)

    def _found_entry(self, name: str, caller: Caller) -> dict[str, Any]:
        if name == self._base:
            return self._base_entry()
        if name in self._extra_tasks:
            return self._extra_entry(name)
        task = split_ref(name)[0]
        if self._bank is None or not is_name(task):
            raise self._known_names.unknown(task, caller)
        try:
            self._bank.current(task)
        except UnknownTask:
            raise self._known_names.unknown(task, caller) from None
        return self._bank_entry(name, self._bank.describe(name))

    def without_version(self, name: str) -> str:
        """``name`` of ``name@version``; the base model's name, which may hold an @, as it is."""
        return name if name == self._base else split_ref(name)[0]

    def bank_tasks(self, can_access: Callable[[str], bool]) -> list[str]:
        """Names of the tasks of this model that are in the bank, expired ones too, and that ``can_access`` accepts."""
        names = [name for name in self._bank_names() if name not in self._extra_tasks and can_access(name)]
        return [entry["id"] for entry in self._task_entries(names, expired=True)]

    def check_in_bank(self, name: str) -> None:
        """Raise PublishConflict for a name that is the base model's or one of ``extra_tasks``."""
        if name in self._extra_tasks or name == self._base:
            raise PublishConflict(
                f"'{name}' is not in the bank: it was given when the server started, and stays as it is."
            )

    def _bank_names(self) -> list[str]:
        names = self._bank.names() if self._bank is not None else []
        if len(self._descriptions) > len(names):
            for removed in set(self._descriptions).difference(names):
                self._descriptions.pop(removed, None)
        return names

    def _task_entries(self, names: Iterable[str], *, expired: bool) -> Iterator[dict[str, Any]]:
        for name in names:
            try:
                if name in self._extra_tasks:
                    yield self._extra_entry(name)
                else:
                    description = self._description(name)
                    if "ttl" in description and not expired and self._bank is not None:
                        self._bank.check_alive(name)
                    yield self._bank_entry(name, description)
            except (ModelMismatch, UnknownTask):  # of another model, expired, or removed a moment ago
                continue
            except CorruptFile as error:  # one damaged task hides no other
                logging.getLogger(__name__).warning("left out of the list: %s", error)

    def _description(self, name: str) -> dict[str, Any]:
        """The description of the served version; versions never change, so it is read once."""
        assert self._bank is not None
        ref = f"{name}@{self._bank.current(name)}"
        read = self._descriptions.get(name)
        if read is None or read[0] != ref:
            read = self._descriptions[name] = ref, self._bank.describe(ref)
        return read[1]

    def _base_entry(self) -> dict[str, Any]:
        return self._entry(self._base, self._started, parent=None, generation=self._model_defaults)

    def _extra_entry(self, name: str) -> dict[str, Any]:
        version = self._extra_tasks[name].version or None
        return self._entry(name, self._started, parent=self._base, version=version)

    def _bank_entry(self, name: str, description: Mapping[str, Any]) -> dict[str, Any]:
        made_for = ModelIdentity.from_json(description["model"])
        made_for.check(self._identity, f"task '{name}'", allow_other_weights=self._allow_other_weights)
        created = int(datetime.fromisoformat(description["created"]).timestamp())
        return self._entry(name, created, parent=self._base, version=description["version"])

    def _entry(self, name: str, created: int, **more: object) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "foreword", **more}
