"""Ten times more is asked than can be answered: refusals are quick, memory stays, and afterwards all is well."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from trust.two_tenants import TwoTenants

TIMES = 10
WAITING = 64
REFUSAL = 0.1
"""Seconds that a refusal takes in the server, at most: half of them in short, where other programs may run beside, and
95 of 100 in long."""
RECOVERY = 5.0
TOKENS, CHOICES = 48, 8
MEBIBYTE = 1 << 20


@pytest.mark.timed
def test_ten_times_more_than_can_be_answered(start, scale) -> None:
    server: TwoTenants = start("--max-waiting", str(WAITING))
    capacity = measure_capacity(server, scale(3.0, 10.0))
    seconds, settled = scale((15.0, 5.0), (600.0, 60.0))
    memory: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        time.sleep(settled)
        while not stop.wait(0.5):
            memory.append(server.rss_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    statuses = asyncio.run(offer(server, TIMES * capacity, seconds))
    stop.set()
    watcher.join()
    began = time.monotonic()
    assert server.complete("ben", "b-say").status_code == 200
    recovered = time.monotonic() - began
    lines = [json.loads(line) for line in server.written().splitlines() if line.startswith("{")]
    refusals = sorted(line["seconds"] for line in lines if line["status"] == 429)
    percent = scale(50, 95)
    slow = refusals[len(refusals) * percent // 100]
    grown = (max(memory) - memory[0]) / MEBIBYTE
    print(
        f"\n{capacity:.1f} answers/s alone; of {TIMES} times more for {seconds:.0f} s {dict(statuses)}; refused in "
        f"{slow * 1000:.0f} ms (p{percent} of {len(refusals)}), memory {grown:+.0f} MiB of {memory[0] / MEBIBYTE:.0f} "
        f"after {settled:.0f} s, an answer {recovered:.2f} s after the end"
    )
    assert set(statuses) <= {200, 429}, statuses
    assert statuses[429] > statuses[200] > 0
    assert slow <= REFUSAL
    assert grown <= 0.05 * memory[0] / MEBIBYTE + 16
    assert recovered <= RECOVERY


def request() -> dict[str, object]:
    """The same answers every time: new ones would go on filling the cache of pages up to its bound."""
    body = {"model": "a-say", "prompt": "Hello", "max_tokens": TOKENS, "n": CHOICES, "ignore_eos": True}
    return body | {"temperature": 1, "seed": 1}


def measure_capacity(server: TwoTenants, seconds: float) -> float:
    """Answers a second, with a few asked at once."""
    end = time.monotonic() + seconds
    done: list[int] = []

    def go_on() -> None:
        while time.monotonic() < end:
            assert server.ask("POST", "/v1/completions", request(), key="ann").status_code == 200
            done.append(1)

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(go_on) for _ in range(4)]:
            each.result()
    return len(done) / seconds


async def offer(server: TwoTenants, rate: float, seconds: float) -> Counter[int]:
    """Ask so many times a second whatever comes back; how often which status came."""
    statuses: Counter[int] = Counter()
    headers = {"Authorization": f"Bearer {server.keys['ann']}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=120, trust_env=False) as client:

        async def ask() -> None:
            answer = await client.post(f"{server.url}/v1/completions", json=request())
            statuses[answer.status_code] += 1

        began, asked = time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while (now := time.monotonic() - began) < seconds:
                while asked < now * rate:
                    tasks.create_task(ask())
                    asked += 1
                await asyncio.sleep(0.005)
    return statuses
