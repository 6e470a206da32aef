"""`BankShelf`: the shelf as the bank itself has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from foreword.bank.bank import Bank
from foreword.errors import ForewordError
from foreword.server.ui.routes import Refused, Routes
from foreword.server.ui.shelf import Version, figures

T = TypeVar("T")


class BankShelf:
    """Reads the bank for a visitor whom the server lets read its models.

    Args:
        routes: which tasks this server offers, and whether the key may see them.
        bank: where they are; ``None`` offers none.
    """

    def __init__(self, routes: Routes, bank: Bank | None) -> None:
        self._routes = routes
        self._bank = bank

    async def tasks(self, key: str) -> list[Version]:
        offered = [model["id"] for model in await self._routes.models(key) if model.get("parent")]
        return [] if self._bank is None else await self._safely(lambda bank: _served(bank, offered))

    async def versions(self, key: str, task: str) -> list[Version]:
        await self._routes.models(key)
        return await self._safely(lambda bank: _versions(bank, task))

    async def rollback(self, key: str, task: str, version: str) -> str:
        await self._routes.models(key)
        return await self._safely(lambda bank: bank.rollback(task, version))

    async def _safely(self, read: Callable[[Bank], T]) -> T:
        if self._bank is None:
            raise Refused("this server has no bank, so its tasks have no versions.", 404)
        try:
            return await run_in_threadpool(read, self._bank)
        except ForewordError as error:
            raise Refused(str(error), error.http_status) from error


def _served(bank: Bank, offered: list[str]) -> list[Version]:
    stored = set(bank.names())  # tasks of this process alone are in no bank
    return [_version(bank.describe(name), served=True) for name in offered if name in stored]


def _versions(bank: Bank, task: str) -> list[Version]:
    current = bank.current(task)
    return [
        _version(bank.describe(f"{task}@{version}"), served=version == current)
        for version in reversed(bank.versions(task))
    ]


def _version(record: dict[str, Any], *, served: bool) -> Version:
    return Version(
        record["name"],
        record["version"],
        served,
        record["kind"],
        record["method"],
        sum(entry["size"] for entry in record["files"].values()),
        record["created"],
        figures(record["provenance"].get("metrics")),
    )
