"""`TaskVersions`: lists the versions of tasks and rolls back, over the routes of ``/v1/tasks``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foreword.server.ui.server_client import Authorization, ServerClient


@dataclass(frozen=True)
class TaskVersion:
    """One version of a task.

    Attributes:
        task: name of the task.
        version: as in the bank.
        served: whether requests that name the task alone get this version.
        kind, method: as published.
        labels: of a task that classifies or tags, else empty.
        bytes: of all its files.
        created: ISO 8601, UTC.
        metrics: held-out metrics by name, of a task that was trained.
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
    def from_json(cls, task: Mapping[str, Any]) -> TaskVersion:
        """From the server's task object."""
        return cls(
            task["name"],
            task["version"],
            task["version"] == task["current"],
            task["kind"],
            task["method"],
            tuple(task["labels"]),
            task["bytes"],
            task["created"],
            {name: value for name, value in (task["metrics"] or {}).items() if isinstance(value, int | float)},
        )


class TaskVersions:
    """Every method raises ServerRefusal for an error response.

    Args:
        client: sends the requests.
    """

    def __init__(self, client: ServerClient) -> None:
        self._client = client

    async def tasks(self, authorization: Authorization) -> list[TaskVersion]:
        """The served version of every task, by name."""
        tasks = await self._client.request("GET", "/v1/tasks", authorization)
        return [TaskVersion.from_json(each) for each in tasks["data"]]

    async def versions(self, authorization: Authorization, task: str) -> list[TaskVersion]:
        """All versions of a task, newest first."""
        served = await self._client.request("GET", f"/v1/tasks/{task}", authorization)
        paths = [f"/v1/tasks/{task}@{version}" for version in reversed(served["versions"])]
        return [TaskVersion.from_json(await self._client.request("GET", path, authorization)) for path in paths]

    async def rollback(self, authorization: Authorization, task: str, version: str) -> str:
        """Serve a version from now on, and return it."""
        return (await self._client.request("POST", f"/v1/tasks/{task}/rollback", authorization, {"version": version}))[
            "current"
        ]
