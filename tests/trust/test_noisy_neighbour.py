"""One tenant does the worst that one key can do; how long does another wait for a first token?"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from trust.two_tenants import TwoTenants

TIMES = 3
LEAST = 0.05
"""Seconds that a first token alone is taken for at least: below, a step of the engine and the scheduler of the system
count for more than any neighbour."""
ATTACKERS = 2
SLICES = 2
"""Alone and beside the neighbour by turns, so that other load of the machine falls on both."""

Attack = Callable[[TwoTenants, random.Random], Any]


# Written once: this process measures, too.
MANY_PROMPTS = json.dumps({"model": "a-say", "prompt": ["a"] * 20_000, "n": 128, "max_tokens": 1})
LONG_MESSAGE = json.dumps({"model": "a-say", "messages": [{"role": "user", "content": "hello world " * 250_000}]})
JSON = {"Content-Type": "application/json"}


def many_prompts(server: TwoTenants, draw: random.Random) -> Any:
    return server.ask("POST", "/v1/completions", key="ann", content=MANY_PROMPTS, headers=JSON)


def long_message(server: TwoTenants, draw: random.Random) -> Any:
    return server.ask("POST", "/v1/chat/completions", key="ann", content=LONG_MESSAGE, headers=JSON)


def whole_batch(server: TwoTenants, draw: random.Random) -> Any:
    return server.complete("ann", "a-say", "Hello", 400, n=64)


def new_choices(server: TwoTenants, draw: random.Random) -> Any:
    choices = [f"{draw.random()} {i}" for i in range(1500)]
    return server.complete("ann", "a-say", ignore_eos=False, structured_outputs={"choice": choices})


def new_schemas(server: TwoTenants, draw: random.Random) -> Any:
    schema: dict[str, Any] = {"type": "string", "pattern": f"^(a|b{draw.random()}){{1,200}}c{{1,200}}$"}
    for depth in range(12):
        schema = {"type": "object", "properties": {f"p{i}-{depth}": schema for i in range(2)}}
    return server.complete("ann", "a-say", ignore_eos=False, structured_outputs={"json": schema})


def long_stops(server: TwoTenants, draw: random.Random) -> Any:
    bias = {str(ord("a")): 100}
    stops = ["a" * 900 + chr(ord("b") + i) for i in range(16)]
    return server.complete("ann", "a-say", "x", 400, stop=stops, logit_bias=bias)


ATTACKS = (many_prompts, long_message, whole_batch, new_choices, new_schemas, long_stops)


@pytest.mark.timed
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_first_token_beside_a_neighbour(server: TwoTenants, attack: Attack, scale) -> None:
    seconds = scale(2.5, 120.0 / SLICES)
    alone: list[float] = []
    beside: list[float] = []
    statuses: set[int] = set()
    for _ in range(SLICES):
        alone += first_tokens(server, min(seconds, 20.0))
        stop = threading.Event()

        def go_on(seed: int, stop: threading.Event = stop) -> None:
            draw = random.Random(seed)
            while not stop.is_set():
                statuses.add(attack(server, draw).status_code)

        with ThreadPoolExecutor(ATTACKERS) as attackers:
            running = [attackers.submit(go_on, seed) for seed in range(ATTACKERS)]
            time.sleep(0.3)
            beside += first_tokens(server, seconds)
            stop.set()
        for each in running:
            each.result()
    one, other = percentile(alone, 95), percentile(beside, 95)
    counts = f"{len(beside)} and {len(alone)} answers"
    print(f"\n{attack.__name__} ({sorted(statuses)}): {other:.3f} s beside, {one:.3f} s alone (p95 of {counts})")
    assert not [status for status in statuses if status >= 500], statuses
    assert other <= TIMES * max(one, LEAST)


@pytest.fixture(scope="module")
def server(start) -> TwoTenants:
    running = start("--quiet")
    for task in ("a-say", "b-say"):
        assert running.complete("boss", task).status_code == 200
    return running


def first_tokens(server: TwoTenants, seconds: float) -> list[float]:
    """How long single tokens of the other tenant take, one after another."""
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        answer = server.complete("ben", "b-say", f"Hi {began}", 1)
        assert answer.status_code == 200, answer.text
        found.append(time.monotonic() - began)
        time.sleep(0.02)
    return found


def percentile(found: list[float], percent: int) -> float:
    return sorted(found)[(len(found) - 1) * percent // 100]
