"""`RateLimiter`: requests and tokens a minute, and tokens a day, of one key."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from foreword.errors import LimitReached
from foreword.server.operations.api_keys import ApiKey

_MINUTE = 60.0


class TokenBucket:
    """Token bucket: refills steadily with ``per_minute`` units, and holds at most a minute's.

    Args:
        per_minute: units; the capacity.
        clock: monotonic, in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._capacity = float(per_minute)
        self._clock = clock
        self._available = self._capacity
        self._refilled_at = clock()

    def seconds_until(self, count: float) -> float:
        """Seconds until ``count`` units are available."""
        self._refill()
        return max(0.0, (count - self._available) * _MINUTE / self._capacity)

    def consume(self, count: float) -> None:
        """Take units; the bucket may fall below zero, and then takes longer to refill."""
        self._refill()
        self._available -= count

    def _refill(self) -> None:
        now = self._clock()
        self._available = min(self._capacity, self._available + (now - self._refilled_at) * self._capacity / _MINUTE)
        self._refilled_at = now


class RateLimiter:
    """Rate limits and daily quota of one key.

    An answer's tokens are known only at its end, so a request is let in while anything is left, and counted afterwards.

    Args:
        key: has the limits.
        used: tokens that it used on ``day`` (ISO 8601, UTC) in an earlier run of the server.
        clock: monotonic, in seconds.
        now: the time in UTC.
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

    def count_request(self) -> None:
        """Count one request. Raises LimitReached, and then counts nothing."""
        self._reset_on_new_day()
        key = self.key
        if key.tokens_per_day is not None and self.used >= key.tokens_per_day:
            seconds = (
                datetime.combine(self._now().date() + timedelta(1), datetime.min.time(), UTC) - self._now()
            ).seconds
            raise LimitReached(
                f"the key '{key.name}' has used its {key.tokens_per_day:,} tokens of today; ask after midnight UTC.",
                seconds + 1,
            )
        if self._tokens is not None and (seconds := self._tokens.seconds_until(1)):
            raise self._rate_error(f"{key.tokens_per_minute:,} tokens", seconds)
        if self._requests is not None:
            if seconds := self._requests.seconds_until(1):
                raise self._rate_error(f"{key.requests_per_minute:,} requests", seconds)
            self._requests.consume(1)

    def count_tokens(self, tokens: int) -> None:
        """Count the tokens of one request, prompt and answer."""
        self._reset_on_new_day()
        self.used += tokens
        if self._tokens is not None:
            self._tokens.consume(tokens)

    def _rate_error(self, limit: str, seconds: float) -> LimitReached:
        return LimitReached(
            f"the key '{self.key.name}' has reached its {limit} a minute; ask again in {math.ceil(seconds)} s.", seconds
        )

    def _reset_on_new_day(self) -> None:
        if self.day != (today := self._today()):
            self.day, self.used = today, 0

    def _today(self) -> str:
        return self._now().date().isoformat()
