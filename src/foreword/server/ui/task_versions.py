"""`TaskVersions`: the versions of tasks as the page shows them, and rolling back, over ``/v1/tasks``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foreword.server.ui.server_client import AuthHeaders, ServerClient


@dataclass(frozen=True)
class TaskVersion:
    """One version of a task.

    Attributes:
        task: its name.
        version: as in the bank.
        served: requests to the plain name meet this one.
        kind, method: as published.
        labels: that it classifies into, if it does.
        bytes: of all its files.
        created: ISO 8601, UTC.
        metrics: held-out figures, where it was trained.
    """

    task: str
    version: str
    served: bool
    kind: str
    method: str
    labels: tuple[str, ...]
    bytes: int
    created: str
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> TaskVersion:
        """From the server's JSON."""
        return cls(
            found["name"],
            found["version"],
            found["version"] == found["current"],
            found["kind"],
            found["method"],
            tuple(found["labels"]),
            found["bytes"],
            found["created"],
            {name: value for name, value in (found["metrics"] or {}).items() if isinstance(value, int | float)},
        )


class TaskVersions:
    """Every method raises Refused, with the server's sentence.

    Args:
        routes: of the server.
    """

    def __init__(self, routes: ServerClient) -> None:
        self._routes = routes

    async def tasks(self, shown: AuthHeaders) -> list[TaskVersion]:
        """The served version of every task, by name."""
        found = await self._routes.get("/v1/tasks", shown)
        return [TaskVersion.of(each) for each in found["data"]]

    async def versions(self, shown: AuthHeaders, task: str) -> list[TaskVersion]:
        """All versions of a task, newest first."""
        found = await self._routes.get(f"/v1/tasks/{task}", shown)
        paths = [f"/v1/tasks/{task}@{version}" for version in reversed(found["versions"])]
        return [TaskVersion.of(await self._routes.get(path, shown)) for path in paths]

    async def rollback(self, shown: AuthHeaders, task: str, version: str) -> str:
        """Serve a version from now on, and return it."""
        return (await self._routes.post(f"/v1/tasks/{task}/rollback", shown, {"version": version}))["current"]
