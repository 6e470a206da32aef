"""A candidate in a process of its own: answers, failures, death and memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from foreword.bench.candidate import Candidate
from foreword.errors import BenchError

HERE = "bench.candidates"


@pytest.fixture(autouse=True)
def _tests_on_the_path(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath / "tests"))


def test_it_answers_whatever_is_printed_meanwhile():
    with Candidate("echo", f"{HERE}:echo", {"first": 40}) as candidate:
        assert candidate.ask("add", number=2) == 42
        assert candidate.ask("add", number=3) == 43


def test_it_knows_what_it_grew_by():
    with Candidate("echo", f"{HERE}:echo", {"first": 0}) as candidate:
        before = candidate.ask("memory")
        candidate.ask("grow", megabytes=64)
        after = candidate.ask("memory")
    assert after["peak_bytes"] - before["peak_bytes"] > 48 << 20
    if after["growth_bytes"] is None:
        assert not os.path.exists("/proc/self/clear_refs")
    else:
        assert 48 << 20 < after["growth_bytes"] < 160 << 20
        assert after["growth_bytes"] <= after["peak_bytes"]


def test_one_that_cannot_be_made_says_why():
    with pytest.raises(BenchError, match=r"^broken failed: ValueError: no good: 5 \(candidates.py line \d+\)$"):
        Candidate("broken", f"{HERE}:broken", {"first": 5})


@pytest.mark.parametrize(
    ("question", "said"),
    [("fail", "ZeroDivisionError"), ("die", "without an answer, status 7"), ("quit", "without an answer, status 3")],
)
def test_one_that_fails_or_dies_says_so(question, said):
    with Candidate("mortal", f"{HERE}:mortal", {}) as candidate, pytest.raises(BenchError, match=said):
        candidate.ask(question)


def test_one_that_is_late_is_ended():
    with Candidate("sleepy", f"{HERE}:sleepy", {}) as candidate:
        with candidate.within(60):
            candidate.ask("sleep", seconds=0.01)
        late = pytest.raises(BenchError, match=r"^sleepy failed: it did not answer within 0.5 seconds$")
        with late, candidate.within(0.5):
            candidate.ask("sleep", seconds=60)


def test_what_fails_in_time_says_so():
    failing = pytest.raises(BenchError, match="ZeroDivision")
    with Candidate("mortal", f"{HERE}:mortal", {}) as candidate, failing, candidate.within(60):
        candidate.ask("fail")


def test_a_python_that_is_not_there():
    with pytest.raises(BenchError, match=r"no/such/python.*give another Python"):
        Candidate("nobody", f"{HERE}:echo", {}, "no/such/python")


def test_what_it_started_ends_with_it(tmp_path):
    with Candidate("parent", f"{HERE}:parent", {}) as candidate:
        child = candidate.ask("child")
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
    with Candidate("echo", f"{HERE}:echo", {"first": 0}, environment=wanted) as candidate:
        assert [candidate.ask("environment", name=name) for name in wanted] == ["ours", "theirs"]
