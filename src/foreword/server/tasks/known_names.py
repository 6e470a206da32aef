"""`KnownNames`: what an unknown name may have been meant to be, of the names that its key reaches and of no others."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from foreword.bank.names import NAMES_SECONDS, suggest
from foreword.core import Task
from foreword.errors import UnknownTask
from foreword.server.operations.auth import Caller

if TYPE_CHECKING:
    from foreword.bank.bank import Bank

_SHOWN = 80
"""Characters of an unknown name that its error repeats."""


class KnownNames:
    """Names of the base model and of tasks, for suggestions alone.

    Those that a key reaches are kept for some seconds, so that a wrong name costs a search among them, whatever else
    is in the bank.

    Args:
        base: name of the base model.
        extra_tasks: of the process.
        bank: where the others are, if anywhere.
    """

    def __init__(self, base: str, extra_tasks: Mapping[str, Task], bank: Bank | None) -> None:
        self._base, self._extra_tasks, self._bank = base, extra_tasks, bank
        self._reachable: dict[str | None, tuple[float, list[str]]] = {}

    def unknown(self, name: str, caller: Caller) -> UnknownTask:
        """The error for a name that is neither the base model's nor a task's. May list the bank."""
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
        near = suggest(name, self._names(caller), "GET /v1/models")
        return UnknownTask(f"the model '{shown}' does not exist: {near}")

    def _names(self, caller: Caller) -> list[str]:
        found_at, names = self._reachable.get(caller.name, (float("-inf"), []))
        if (now := time.monotonic()) - found_at > NAMES_SECONDS:
            stored = self._bank.recent_names() if self._bank is not None else []
            names = sorted(filter(caller.can_access, {self._base, *self._extra_tasks, *stored}))
            self._reachable[caller.name] = now, names
        return names
