"""`RateLimiter`: tokens are reserved at admission and settled at the end; answers count as requests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreword.errors import LimitReached
from foreword.server.operations.api_keys import ApiKey, digest_of
from foreword.server.operations.rate_limits import RateLimiter, Reservation

QUOTA = 100


def limiter(clock: float = 0.0, **limits: int) -> RateLimiter:
    return RateLimiter(ApiKey(name="k", sha256=digest_of("k"), **limits), clock=lambda: clock)


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.lists(st.floats(0, 1), max_size=4), st.sampled_from(["closed", "dropped"]))
    )
)
def test_no_order_of_requests_overdraws_a_quota_or_leaks_a_reservation(requests):
    limited, open_requests, spent = limiter(tokens_per_day=QUOTA), [], 0
    for tokens, parts, end in requests:
        try:
            reservation = limited.reserve(tokens)
        except LimitReached:
            assert limited.used + limited.reserved + tokens > QUOTA
            open_requests.clear()  # these were dropped before their end
            continue
        for part in parts:
            most = int(reservation.tokens * part)
            reservation.settle(most, most // 2)
            spent += most // 2
        if end == "closed":
            reservation.close()
        else:
            open_requests.append(reservation)
        assert limited.used + limited.reserved <= QUOTA
        del reservation
    open_requests.clear()
    assert (limited.used, limited.reserved) == (spent, 0)


def test_threads_do_not_overdraw_a_quota_together():
    limited = limiter(tokens_per_day=1000)

    def ask(_: int) -> Reservation | None:
        try:
            return limited.reserve(30)
        except LimitReached:
            return None

    with ThreadPoolExecutor(16) as pool:
        taken = [each for each in pool.map(ask, range(200)) if each is not None]
    assert len(taken) == 33
    with pytest.raises(LimitReached, match="ask again when they are done") as error:
        limited.reserve(30)
    assert error.value.retry_after == 1.0
    taken.clear()
    assert limited.reserved == 0
    with pytest.raises(LimitReached, match="ask for fewer"):
        limited.reserve(1001)


def test_what_an_answer_does_not_take_of_a_minute_is_given_back():
    limited = limiter(tokens_per_minute=60)
    first = limited.reserve(500)
    with pytest.raises(LimitReached, match="60 tokens a minute"):
        limited.reserve(1)
    first.settle(500, 20)
    limited.reserve(1)


def test_answers_count_as_requests():
    now = count(0)
    limited = RateLimiter(ApiKey(name="k", sha256=digest_of("k"), requests_per_minute=6), clock=lambda: 0.0)
    limited.count_request()
    limited.count_answers(4)  # 2 are left
    limited.count_request()
    with pytest.raises(LimitReached, match="6 requests a minute"):
        limited.count_answers(3)
    limited.count_request()
    with pytest.raises(LimitReached):
        limited.count_request()
    other = RateLimiter(ApiKey(name="k", sha256=digest_of("k"), requests_per_minute=6), clock=lambda: 60.0 * next(now))
    other.count_request()
    other.count_answers(600)  # more than there ever are: of the minutes to come
    with pytest.raises(LimitReached):
        other.count_request()
