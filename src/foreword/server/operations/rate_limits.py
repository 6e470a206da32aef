"""`RateLimiter`: what one key may still ask for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from foreword.errors import LimitReached
from foreword.server.operations.api_keys import ApiKey

_MINUTE = 60.0


class TokenBucket:
    """So many units a minute: they come back steadily, and no more than a minute's are ever saved up.

    Args:
        per_minute: how many.
        clock: seconds that only grow.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._most = float(per_minute)
        self._clock = clock
        self._left = self._most
        self._at = clock()

    def wait(self, needed: float) -> float:
        """Seconds until as many units are there."""
        self._refill()
        return max(0.0, (needed - self._left) * _MINUTE / self._most)

    def take(self, count: float) -> None:
        """Take units, also those that are not there yet: who took too many waits the longer."""
        self._refill()
        self._left -= count

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._most / _MINUTE)
        self._at = now


class RateLimiter:
    """Rates and quota of one key. What an answer costs is known only at its end, so a request is let in while anything
    is left, and taken off afterwards.

    Args:
        key: whose.
        used: tokens that it has used on the day ``day``, from an earlier run of the server.
    """

    def __init__(
        self,
        key: ApiKey,
        *,
        used: int = 0,
        day: str = "",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.key = key
        self._now = now
        self.day = day or self._today()
        self.used = used
        self._requests = TokenBucket(key.requests_per_minute, clock) if key.requests_per_minute else None
        self._tokens = TokenBucket(key.tokens_per_minute, clock) if key.tokens_per_minute else None

    def admit(self) -> None:
        """Count one request. Raises LimitReached, which counts nothing."""
        self._roll()
        key = self.key
        if key.tokens_per_day is not None and self.used >= key.tokens_per_day:
            left = (datetime.combine(self._now().date() + timedelta(1), datetime.min.time(), UTC) - self._now()).seconds
            raise LimitReached(
                f"the key '{key.name}' has used its {key.tokens_per_day:,} tokens of today; ask after midnight UTC.",
                left + 1,
            )
        if self._tokens is not None and (seconds := self._tokens.wait(1)):
            raise self._limited(f"{key.tokens_per_minute:,} tokens", seconds)
        if self._requests is not None:
            if seconds := self._requests.wait(1):
                raise self._limited(f"{key.requests_per_minute:,} requests", seconds)
            self._requests.take(1)

    def charge(self, tokens: int) -> None:
        """Take off what a request has used, its prompt and its answer."""
        self._roll()
        self.used += tokens
        if self._tokens is not None:
            self._tokens.take(tokens)

    def _limited(self, limit: str, seconds: float) -> LimitReached:
        return LimitReached(
            f"the key '{self.key.name}' has reached its {limit} a minute; ask again in {math.ceil(seconds)} s.", seconds
        )

    def _roll(self) -> None:
        if self.day != (today := self._today()):
            self.day, self.used = today, 0

    def _today(self) -> str:
        return self._now().date().isoformat()
