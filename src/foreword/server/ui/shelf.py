"""`Shelf`: the versions of tasks as the page shows them, and rolling back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Version:
    """One version of a task.

    Attributes:
        task: its name.
        version: as in the bank.
        served: requests to the plain name meet this one.
        kind, method: as published.
        bytes: of all its files or tensors.
        created: ISO 8601, UTC.
        metrics: held-out figures, where it was trained.
        length: positions of its prefix, where it is known.
    """

    task: str
    version: str
    served: bool
    kind: str
    method: str
    bytes: int
    created: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    length: int | None = None


class Shelf(Protocol):
    """Every method raises Refused, with a sentence, where the key may not or the task cannot."""

    async def tasks(self, key: str) -> list[Version]:
        """The served version of every task, by name."""
        ...

    async def versions(self, key: str, task: str) -> list[Version]:
        """All versions of a task, newest first."""
        ...

    async def rollback(self, key: str, task: str, version: str) -> str:
        """Serve a version from now on, and return it."""
        ...


def figures(metrics: Any) -> dict[str, float]:
    """The numbers among recorded metrics."""
    found = metrics if isinstance(metrics, Mapping) else {}
    return {str(name): value for name, value in found.items() if isinstance(value, int | float)}
