"""`RateLimiter`: requests and tokens a minute, and tokens a day, of one key."""

from __future__ import annotations

import math
import threading
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
        self.capacity = float(per_minute)
        self._clock = clock
        self._available = self.capacity
        self._refilled_at = clock()

    def seconds_until(self, count: float) -> float:
        """Seconds until ``count`` units are available."""
        self._refill()
        return max(0.0, (count - self._available) * _MINUTE / self.capacity)

    def consume(self, count: float) -> None:
        """Take units, or give back (a number below 0); an empty bucket falls below zero, and takes longer to refill."""
        self._refill()
        self._available -= count

    def _refill(self) -> None:
        now = self._clock()
        self._available = min(self.capacity, self._available + (now - self._refilled_at) * self.capacity / _MINUTE)
        self._refilled_at = now


class RateLimiter:
    """Rate limits and daily quota of one key; may be called from any thread.

    What an answer takes is known only at its end, so the most that it may take is reserved in front (`reserve`), and
    what it did not take is given back: requests at the same time cannot overdraw the quota together.

    Args:
        key: has the limits.
        used: tokens that it used on ``day`` (ISO 8601, UTC) in an earlier run of the server.
        clock: monotonic, in seconds.
        now: the time in UTC.

    Attributes:
        used: tokens on ``day``.
        reserved: tokens that requests in progress may still take.
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
        self.used, self.reserved = used, 0
        self._requests = TokenBucket(key.requests_per_minute, clock) if key.requests_per_minute else None
        self._tokens = TokenBucket(key.tokens_per_minute, clock) if key.tokens_per_minute else None
        self._lock = threading.RLock()  # which a reservation that is collected meanwhile may take again

    def count_request(self) -> None:
        """Count one request, whatever becomes of it. Raises LimitReached, and then counts nothing."""
        self._count_requests(1, counted=0)

    def count_answers(self, answers: int) -> None:
        """Count a request that was counted as one as the ``answers`` that it asks for.

        More than a minute's are let in when a minute's are there, and take those of the minutes to come.

        Raises LimitReached, and then counts no more than before.
        """
        self._count_requests(answers, counted=1)

    def check_tokens(self) -> None:
        """Raise LimitReached if no token is left, of the day or of the minute."""
        with self._lock:
            self._check_tokens(1)

    def reserve(self, tokens: int) -> Reservation:
        """Set aside the most that a request may take, prompt and answers. Raises LimitReached if more than is left of
        the day; of the minute it may take more than is left, and then the next one waits."""
        with self._lock:
            self._check_tokens(tokens)
            self.reserved += tokens
            if self._tokens is not None:
                self._tokens.consume(tokens)
        return Reservation(self, tokens)

    def settle(self, reserved: int, used: int) -> None:
        """Count ``used`` tokens, and give back the ``reserved`` ones in their place."""
        with self._lock:
            self._reset_on_new_day()
            self.used += used
            self.reserved -= reserved
            if self._tokens is not None:
                self._tokens.consume(used - reserved)

    def count_tokens(self, tokens: int) -> None:
        """Count tokens that are about to be run, all of them. Raises as `reserve` does."""
        self.reserve(tokens).settle(tokens, tokens)

    def _count_requests(self, units: int, counted: int) -> None:
        key, bucket = self.key, self._requests
        if bucket is None:
            return
        with self._lock:
            if seconds := bucket.seconds_until(min(units, bucket.capacity) - counted):
                # The same request will be counted as one when it comes again.
                seconds = bucket.seconds_until(min(units, bucket.capacity)) if counted else seconds
                raise self._rate_error(f"{key.requests_per_minute:,} requests", seconds)
            bucket.consume(units - counted)

    def _check_tokens(self, tokens: int) -> None:
        self._reset_on_new_day()
        key = self.key
        if key.tokens_per_day is not None and self.used + self.reserved + tokens > key.tokens_per_day:
            raise self._quota_error(key.tokens_per_day, tokens)
        if self._tokens is not None and self._tokens.seconds_until(1):
            # Sooner, if those who run give back all that they reserved.
            seconds = max(1.0, self._tokens.seconds_until(1 - self.reserved))
            raise self._rate_error(f"{key.tokens_per_minute:,} tokens", seconds)

    def _quota_error(self, quota: int, tokens: int) -> LimitReached:
        now = self._now()
        midnight = (datetime.combine(now.date() + timedelta(1), datetime.min.time(), UTC) - now).seconds + 1
        left = quota - self.used
        if left <= 0:
            return LimitReached(
                f"the key '{self.key.name}' has used its {quota:,} tokens of today; ask after midnight UTC.", midnight
            )
        if tokens <= left:  # as soon as those who run have given back what they do not take
            return LimitReached(
                f"the key '{self.key.name}' has {left:,} of its {quota:,} tokens of today left, {self.reserved:,} of "
                f"which its running requests may take, and this one may take {tokens:,}; ask again when they are done.",
                1.0,
            )
        return LimitReached(
            f"the key '{self.key.name}' has {left:,} of its {quota:,} tokens of today left, and this request may take "
            f"{tokens:,}; ask for fewer (max_tokens), or after midnight UTC.",
            midnight,
        )

    def _rate_error(self, limit: str, seconds: float) -> LimitReached:
        return LimitReached(
            f"the key '{self.key.name}' has reached its {limit} a minute; ask again in {math.ceil(seconds)} s.", seconds
        )

    def _reset_on_new_day(self) -> None:
        if self.day != (today := self._today()):
            self.day, self.used = today, 0

    def _today(self) -> str:
        return self._now().date().isoformat()


class Reservation:
    """Tokens that are set aside for one request; what was not settled is given back with the object at the latest.

    Args:
        limiter: of the key.
        tokens: that are left of it.
    """

    def __init__(self, limiter: RateLimiter, tokens: int) -> None:
        self._limiter = limiter
        self.tokens = tokens

    def settle(self, part: int, used: int) -> None:
        """End a ``part`` of it, of which ``used`` tokens were taken."""
        part = min(part, self.tokens)
        self.tokens -= part
        self._limiter.settle(part, used)

    def close(self) -> None:
        """Give back what is left."""
        self.settle(self.tokens, 0)

    def __del__(self) -> None:
        if self.tokens:
            self.close()
