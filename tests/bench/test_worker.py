"""A participant in a process of its own: answers, failures, death, and where its code is found."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from foreword.bench.worker import Worker
from foreword.errors import BenchError

HERE = "bench.workers"


def test_it_answers_whatever_is_printed_meanwhile():
    with Worker("echo", f"{HERE}:echo", {"first": 40}) as worker:
        assert worker.ask("add", number=2) == 42
        assert worker.ask("add", number=3) == 43


def test_one_that_cannot_be_made_says_why():
    with pytest.raises(BenchError, match=r"^broken failed: ValueError: no good: 5 \(workers.py line \d+\)$"):
        Worker("broken", f"{HERE}:broken", {"first": 5})


@pytest.mark.parametrize(
    ("question", "said"),
    [("fail", "ZeroDivisionError"), ("die", "without an answer, status 7"), ("quit", "without an answer, status 3")],
)
def test_one_that_fails_or_dies_says_so(question, said):
    with Worker("mortal", f"{HERE}:mortal", {}) as worker, pytest.raises(BenchError, match=said):
        worker.ask(question)


def test_a_python_that_is_not_there():
    with pytest.raises(BenchError, match=r"no/such/python.*give another Python"):
        Worker("nobody", f"{HERE}:echo", {}, "no/such/python")


def test_what_it_started_ends_with_it(tmp_path):
    with Worker("parent", f"{HERE}:parent", {}) as worker:
        child = worker.ask("child")
        os.kill(child, 0)
    for _ in range(100):  # whoever inherits it has yet to see that it ended
        if not _runs(child):
            return
        time.sleep(0.05)
    pytest.fail("the process of a process is still there")


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_its_environment_is_what_it_wants_unless_ours_says_otherwise(monkeypatch):
    monkeypatch.setenv("FOREWORD_TEST_OURS", "ours")
    wanted = {"FOREWORD_TEST_OURS": "theirs", "FOREWORD_TEST_WANTED": "theirs"}
    with Worker("echo", f"{HERE}:echo", {"first": 0}, environment=wanted) as worker:
        assert [worker.ask("environment", name=name) for name in wanted] == ["ours", "theirs"]


def test_code_of_other_packages_is_found_from_any_folder(monkeypatch, tmp_path):
    """`benchmarks` lies in the checkout, which is not the working directory of everybody who imports it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with Worker("echo", f"{HERE}:echo", {"first": 1}) as worker:
        assert worker.ask("add", number=1) == 2
