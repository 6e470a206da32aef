"""The most that a participant ever held, and what it grew by."""

from __future__ import annotations

import os

from foreword.bench.worker import Worker


def test_it_knows_what_it_grew_by():
    with Worker("hoarder", "hoarder:start", {}) as worker:
        before = worker.ask("memory")
        worker.ask("grow", megabytes=64)
        after = worker.ask("memory")
    assert after["peak_bytes"] - before["peak_bytes"] > 48 << 20
    if after["growth_bytes"] is None:
        assert not os.path.exists("/proc/self/clear_refs")
    else:
        assert 48 << 20 < after["growth_bytes"] < 160 << 20
        assert after["growth_bytes"] <= after["peak_bytes"]
