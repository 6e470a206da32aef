"""`Lifetimes`: when the tasks of a bank expire, and the recording of their uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foreword.bank.store import Store
from foreword.bank.time_to_live import GRANULARITY, USED, expiry, format_duration, format_time, last_use
from foreword.errors import ExpiredTask


class Lifetimes:
    """Reads and writes the files ``used`` of tasks with a time to live; other tasks have none.

    Args:
        store: of the bank.
        clock: seconds since 1970.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store, self._clock = store, clock
        self._recorded: dict[str, float] = {}

    def expires(self, record: Mapping[str, Any]) -> float | None:
        """When a version expires if it is not used until then, in seconds since 1970; ``None``: never.

        Args:
            record: its ``task.json``.
        """
        if "ttl" not in record:
            return None
        return expiry(record["ttl"], self._last_use(record))

    def has_expired(self, record: Mapping[str, Any]) -> bool:
        expires = self.expires(record)
        return expires is not None and expires <= self._clock()

    def check(self, record: Mapping[str, Any]) -> None:
        """Raise ExpiredTask for a version whose time is over."""
        if self.has_expired(record):
            raise ExpiredTask(
                f"the task '{record['name']}' has expired: it was last used before "
                f"{format_time(self._last_use(record) + record['ttl'] / GRANULARITY)}, and lives "
                f"{format_duration(record['ttl'])} without being used; publish it again."
            )

    def record_use(self, record: Mapping[str, Any]) -> None:
        """Record that a version is used now, if the last record is old enough. Raises ExpiredTask, OSError."""
        if "ttl" not in record:
            return
        name, now = record["name"], self._clock()
        if self._is_recent(self._recorded.get(name), record["ttl"], now):
            return
        self.check(record)
        used_at = self._last_use(record)
        if not self._is_recent(used_at, record["ttl"], now):
            used_at = now
            self._store.write_file(name, USED, f"{format_time(now)}\n".encode())
        self._recorded[name] = used_at

    def _last_use(self, record: Mapping[str, Any]) -> float:
        name = record["name"]
        return last_use(record, self._store.read_file(name, USED), f"{self._store.location}/{name}/{USED}")

    def _is_recent(self, used_at: float | None, ttl: int, now: float) -> bool:
        return used_at is not None and now - used_at < ttl / GRANULARITY
