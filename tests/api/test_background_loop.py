"""Closing a loop from several threads, while others hand it work: everybody gets an answer or an error."""

from __future__ import annotations

import asyncio
import threading
import time

from foreword.api.background_loop import BackgroundLoop
from foreword.errors import EngineError

ROUNDS = 40


async def short() -> int:
    await asyncio.sleep(0.001)
    return 1


def ask(loop: BackgroundLoop) -> None:
    """Ask until it is closed."""
    try:
        while True:
            loop.run(short())
    except EngineError:
        return


def test_nobody_waits_for_ever_for_a_loop_that_closes():
    for _ in range(ROUNDS):
        loop, failed = BackgroundLoop("test"), []

        def close(loop: BackgroundLoop = loop, failed: list[BaseException] = failed) -> None:
            try:
                loop.close()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=ask, args=(loop,), daemon=True) for _ in range(6)]
        threads += [threading.Thread(target=close, daemon=True) for _ in range(2)]
        for thread in threads[:6]:
            thread.start()
        time.sleep(0.005)
        for thread in threads[6:]:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
        assert failed == []
        assert not loop.is_running
