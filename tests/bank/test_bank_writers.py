"""Writers that are killed, and writers that race, in real processes on a local disk."""

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foreword.bank.bank import Bank
from foreword.bank.local import LocalStore
from foreword.core import Task

MakeTask = Callable[..., Task]

STEPS = ("fsync", "replace", "rename", "mkdir", "open", "unlink")


def in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process and return the pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def wait(pid: int, *, seconds: float = 30.0) -> int:
    """Exit status of a child, or minus the signal that ended it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("the child hangs")


def die_at(step: int, *, after: bool) -> None:
    """SIGKILL this process before or after the ``step``-th call that touches the disk."""
    count = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == step and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            mine = count
            try:
                return real(*args, **kwargs)
            finally:
                if mine == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counted

    for verb in STEPS:
        setattr(os, verb, wrap(getattr(os, verb)))


@pytest.mark.parametrize("after", [False, True])
def test_a_publish_killed_at_any_step_leaves_the_version_before(
    tmp_path: Path, make_task: MakeTask, after: bool
) -> None:
    bank = Bank(tmp_path / "bank")
    bank.publish(make_task())
    for step in range(1, 200):
        before = bank.current("sst2")

        def work(step: int = step) -> None:
            die_at(step, after=after)
            bank.publish(make_task(seed=step))

        status = wait(in_child(work))
        assert status in (0, -signal.SIGKILL)
        served = bank.load("sst2")
        assert served.version == before or served.prefix.digest == make_task(seed=step).prefix.digest
        assert bank.names() == ["sst2"]
        assert bank.verify() == []
        if status == 0:
            break
    else:
        pytest.fail("publishing never ended")
    assert step > 15
    assert bank.load(bank.publish(make_task(seed=999)).ref).prefix.digest == make_task(seed=999).prefix.digest
    assert bank.verify() == []


def test_a_first_publish_killed_is_not_seen(tmp_path: Path, make_task: MakeTask) -> None:
    for step in range(1, 200):
        bank = Bank(tmp_path / str(step))

        def work(step: int = step, bank: Bank = bank) -> None:
            die_at(step, after=False)
            bank.publish(make_task())

        status = wait(in_child(work))
        assert bank.verify() == []
        assert bank.names() in ([], ["sst2"])
        bank.publish(make_task(seed=1))
        assert bank.load("sst2").prefix.digest == make_task(seed=1).prefix.digest
        if status == 0:
            return
    pytest.fail("publishing never ended")


def test_a_killed_publish_of_many_files_shows_all_or_nothing(tmp_path: Path, make_full_task: MakeTask) -> None:
    for step in range(1, 200):
        bank = Bank(tmp_path / str(step))

        def work(step: int = step, bank: Bank = bank) -> None:
            die_at(step, after=False)
            bank.publish(make_full_task())

        status = wait(in_child(work))
        assert bank.verify() == []
        if bank.names():
            adapter = bank.load("full").adapter
            assert adapter is not None
            assert adapter.nbytes == make_full_task().nbytes - replace(make_full_task(), adapter=None).nbytes
        if status == 0:
            assert step > 40
            assert bank.names() == ["full"]
            return
    pytest.fail("publishing never ended")


def test_a_removal_killed_at_any_step_leaves_all_or_nothing(tmp_path: Path, make_task: MakeTask) -> None:
    bank = Bank(tmp_path)
    bank.publish(make_task("kept"))
    for step in range(1, 200):
        versions = [bank.publish(make_task(seed=seed)).version for seed in range(2)]

        def work(step: int = step, older: str = versions[0]) -> None:
            die_at(step, after=False)
            bank.remove("sst2", older)
            bank.remove("sst2")

        status = wait(in_child(work))
        assert bank.verify() == []
        assert "kept" in bank.names()
        if "sst2" in bank.names():
            bank.load("sst2")
        if status == 0:
            assert bank.names() == ["kept"]
            return
    pytest.fail("removing never ended")


def test_leftovers_are_swept_by_the_next_writer(tmp_path: Path, make_task: MakeTask) -> None:
    bank = Bank(tmp_path)
    bank.publish(make_task())
    leftover = tmp_path / "sst2/.tmp-killed"
    leftover.mkdir()
    (leftover / "task.json").write_text("{")
    assert bank.verify() == []
    assert bank.sweep(dry_run=True) == ["sst2/.tmp-killed"]
    assert leftover.exists()
    bank.publish(make_task())
    assert not leftover.exists()
    assert bank.sweep() == []


def test_a_sweep_waits_for_the_writer_at_work(tmp_path: Path, make_task: MakeTask) -> None:
    bank, store = Bank(tmp_path), LocalStore(tmp_path)
    bank.publish(make_task())
    with store.lock("sst2"), store.staging_folder("sst2") as folder:
        sweeping = threading.Thread(target=Bank(tmp_path).sweep)
        sweeping.start()
        sweeping.join(0.3)
        assert folder.is_dir()
    sweeping.join(30)
    assert not sweeping.is_alive()
    assert bank.load("sst2")


def test_writers_at_once_lose_nothing(tmp_path: Path, make_task: MakeTask) -> None:
    rounds, writers = 6, 3

    def work(writer: int) -> None:
        bank = Bank(tmp_path)
        for seed in range(rounds):
            bank.publish(make_task(seed=100 * writer + seed))

    pids = [in_child(lambda writer=writer: work(writer)) for writer in range(writers)]
    reader, seen = Bank(tmp_path), 0
    while len(reader.names()) == 0:
        time.sleep(0.001)
    for _ in range(20):
        seen = max(seen, int(reader.load("sst2").version[:4]))
    assert [wait(pid) for pid in pids] == [0] * writers
    versions = reader.versions("sst2")
    assert [int(v[:4]) for v in versions] == list(range(1, rounds * writers + 1))
    expected = {make_task(seed=100 * w + s).prefix.digest for w in range(writers) for s in range(rounds)}
    assert {reader.load(f"sst2@{v}").prefix.digest for v in versions} == expected
    assert reader.current("sst2") == versions[-1]
    assert reader.verify() == []
    assert seen >= 1
