"""Tasks with a time to live: they expire when they are not used, and are pruned."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from foreword.bank.bank import Bank
from foreword.bank.time_to_live import GRANULARITY, format_duration, parse_duration, parse_time
from foreword.core import Task
from foreword.errors import CorruptFile, ExpiredTask, UnknownTask, UsageError

MakeTask = Callable[..., Task]

DAY = 86400
SLACK = DAY / GRANULARITY


class Clock:
    """A clock that stands until it is moved on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["disk", "store"])
def bank(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Bank:
    if request.param == "disk":
        return Bank(tmp_path / "bank", clock=clock)
    return Bank(f"memory://{tmp_path.name}", cache=tmp_path / "cache", clock=clock)


def publish(bank: Bank, clock: Clock, make_task: MakeTask, ttl: int | None = DAY, name: str = "sst2") -> str:
    task = bank.publish(replace(make_task(), name=name, ttl=ttl))
    clock.now = parse_time(bank.describe(name)["created"])
    return task.ref


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("12h", 43200), ("7d", 7 * DAY), ("2w", 14 * DAY)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "0", "0d", "-1d", "1.5d", "7 days", "d", "7y"])
def test_wrong_durations(text: str) -> None:
    with pytest.raises(UsageError, match="such as 7d"):
        parse_duration(text)


def test_the_time_is_kept_and_nothing_is_written_without_one(bank: Bank, clock: Clock, make_task: MakeTask) -> None:
    publish(bank, clock, make_task)
    assert bank.load("sst2").ttl == bank.load_metadata("sst2").ttl == bank.describe("sst2")["ttl"] == DAY
    publish(bank, clock, make_task, None, "kept")
    assert "ttl" not in bank.describe("kept")
    assert bank.expires("kept") is None


def test_an_unused_task_expires(bank: Bank, clock: Clock, make_task: MakeTask) -> None:
    ref = publish(bank, clock, make_task)
    clock.now += DAY
    bank.load("sst2")
    clock.now += SLACK + 1
    for name in ("sst2", ref):
        for read in (bank.load, bank.load_metadata, bank.check_alive):
            with pytest.raises(ExpiredTask, match=r"'sst2' has expired.*lives 1d without being used; publish it again"):
                read(name)
    assert bank.describe("sst2")["name"] == "sst2"
    publish(bank, clock, make_task)
    bank.load("sst2")


def test_a_use_lets_it_begin_anew(bank: Bank, clock: Clock, make_task: MakeTask) -> None:
    publish(bank, clock, make_task)
    task = bank.load("sst2")
    for _ in range(5):
        clock.now += DAY / 2
        bank.record_use(task)
    assert bank.expires("sst2") == clock.now + DAY + SLACK
    clock.now += DAY + SLACK + 1
    with pytest.raises(ExpiredTask):
        bank.record_use(task)


def test_uses_are_seldom_written(
    bank: Bank, clock: Clock, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bank, clock, make_task)
    task, written = bank.load("sst2"), []
    monkeypatch.setattr(bank._store, "write_file", lambda *args: written.append(args))
    for _ in range(1000):
        bank.record_use(task)
    assert not written
    clock.now += SLACK + 1
    for _ in range(1000):
        bank.record_use(task)
    assert len(written) == 1


def test_prune_removes_what_has_expired_and_nothing_else(bank: Bank, clock: Clock, make_task: MakeTask) -> None:
    publish(bank, clock, make_task, None, "forever")
    publish(bank, clock, make_task, None, "once-forever")
    publish(bank, clock, make_task, DAY, "once-forever")
    for name in ("old-1", "old-2", "used"):
        publish(bank, clock, make_task, DAY, name)
    assert bank.prune() == []
    clock.now += DAY
    bank.record_use(bank.load("used"))
    clock.now += DAY / 2
    assert bank.prune(["old-2", "used"]) == ["old-2"]
    assert bank.prune(limit=0) == []
    assert bank.prune() == ["old-1"]
    assert bank.names() == ["forever", "once-forever", "used"]
    with pytest.raises(ExpiredTask):  # its first version never expires, so nothing of it is lost
        bank.load("once-forever")
    bank.rollback("once-forever")
    bank.load("once-forever")


def test_a_task_that_is_used_in_the_last_moment_stays(
    bank: Bank, clock: Clock, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bank, clock, make_task)
    clock.now += 2 * DAY
    real = bank._store.lock

    def lock_later(task: str):
        publish(Bank(bank.location), clock, make_task)
        monkeypatch.setattr(bank._store, "lock", real)
        return real(task)

    monkeypatch.setattr(bank._store, "lock", lock_later)
    assert bank.prune() == []
    assert len(bank.versions("sst2")) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_bank_that_cannot_be_written_serves_on(tmp_path: Path, clock: Clock, make_task: MakeTask) -> None:
    bank = Bank(tmp_path / "bank", clock=clock)
    publish(bank, clock, make_task)
    (tmp_path / "bank" / "sst2").chmod(0o500)
    clock.now += DAY / 2
    bank.record_use(bank.load("sst2"))
    (tmp_path / "bank" / "sst2").chmod(0o700)
    assert not (tmp_path / "bank" / "sst2" / "used").exists()


def test_a_failed_record_of_a_use_is_no_error(
    bank: Bank, clock: Clock, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(bank, clock, make_task)

    def fail(*args: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(bank._store, "write_file", fail)
    clock.now += DAY / 2
    bank.record_use(bank.load("sst2"))


def test_a_damaged_record_of_uses_is_named_and_nothing_is_pruned(
    tmp_path: Path, clock: Clock, make_task: MakeTask
) -> None:
    bank = Bank(tmp_path / "bank", clock=clock)
    publish(bank, clock, make_task)
    (tmp_path / "bank" / "sst2" / "used").write_text("yesterday\n")
    clock.now += 2 * DAY
    with pytest.raises(CorruptFile, match=r"sst2/used: expected a time such as .*'yesterday'; delete it"):
        bank.load("sst2")
    assert bank.prune() == []


@pytest.mark.parametrize("ttl", [0, -1, 1.5, "7d", None, True])
def test_a_malformed_time_is_refused(tmp_path: Path, make_task: MakeTask, ttl: object) -> None:
    from foreword.bank.record import make_record, parse_record

    entry = {"size": 1, "sha256": "0" * 64}
    record = make_record(replace(make_task(), ttl=5), 1, {"README.md": entry, "prefix.safetensors": entry})
    parse_record(json.dumps(record).encode(), "task.json", record["name"])
    with pytest.raises((CorruptFile, UnknownTask), match="ttl"):
        parse_record(json.dumps({**record, "ttl": ttl}).encode(), "task.json", record["name"])
