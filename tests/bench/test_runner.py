"""What is measured, what is skipped, who is missing, and what went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foreword.bench.participants import Peer
from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.workload import Case, Goal, Log, Options, Workload
from foreword.errors import BenchError, UsageError

HERE, AWAY = Peer("here", "a peer"), Peer("away", "a peer", needs=("no-such-package",))


class Counting(Workload):
    """A workload whose figure is how often it was measured."""

    name = "counting"
    peers = (HERE, AWAY)
    reads_data = False

    def __init__(self, steps: int = 1, measured: list[str] | None = None) -> None:
        self.steps = steps
        self.measured = measured or []
        self.seen_peers: tuple[str, ...] = ()

    def cases(self, options: Options) -> list[Case]:
        self.seen_peers = options.peers
        return [self._case(key) for key in ("a/x", "a/y", "b/x")]

    def _case(self, key: str) -> Case:
        def measure(options: Options, settings: Any, log: Log) -> dict[str, Any]:
            log("measuring")
            self.measured.append(key)
            if key == "b/x" and self.measured.count("b/x") == 1:
                raise BenchError("it broke")
            return {"count": len(self.measured), "ratios": {"here": len(self.measured)}}

        return Case(key, {"steps": self.steps}, measure)

    def goals(self, engine: str) -> list[Goal]:
        return [Goal("a/x/count", 2)]


def options(*peers: str) -> Options:
    return Options(Path("."), "model", peers)


def said() -> tuple[list[str], Log]:
    lines: list[str] = []
    return lines, lines.append


def test_a_rerun_goes_on_where_the_last_one_stopped(tmp_path):
    workload, results = Counting(), Results(tmp_path)
    first = run(workload, options(), results, lambda line: None)
    assert workload.measured == ["a/x", "a/y", "b/x"]
    assert first.failed == ["b/x: it broke"]
    assert [record.key for record in first.records] == ["a/x", "a/y"]
    second = run(workload, options(), results, lambda line: None)
    assert workload.measured == ["a/x", "a/y", "b/x", "b/x"]
    assert second.failed == []
    assert second.summary.ratios == {"a/x/here": 1, "a/y/here": 2, "b/x/here": 4}
    again = run(workload, options(), results, lambda line: None, only=["a/x"], again=True)
    assert workload.measured[-1] == "a/x"
    assert again.summary.ratios == {"a/x/here": 5, "a/y/here": 2, "b/x/here": 4}, (
        "what was measured before counts with it"
    )


def test_only_takes_keys_and_their_beginnings(tmp_path):
    workload = Counting()
    run(workload, options(), Results(tmp_path), lambda line: None, only=["a"])
    assert workload.measured == ["a/x", "a/y"]
    with pytest.raises(UsageError, match=r"nothing called 'a/z'.*a/x, a/y, b/x"):
        run(workload, options(), Results(tmp_path), lambda line: None, only=["a/z"])
    with pytest.raises(UsageError, match="nothing called 'a/'"):
        run(workload, options(), Results(tmp_path), lambda line: None, only=["a/"])


def test_other_settings_are_not_mistaken_for_the_same_measurement(tmp_path):
    run(Counting(), options(), Results(tmp_path), lambda line: None, only=["a"])
    with pytest.raises(BenchError, match=r"a-x.json was measured with steps 1, now it is 2; pass --again"):
        run(Counting(steps=2), options(), Results(tmp_path), lambda line: None, only=["a"])
    changed = run(Counting(steps=2), options(), Results(tmp_path), lambda line: None, only=["a"], again=True)
    assert {record.settings["steps"] for record in changed.records} == {2}
    third = Counting(measured=["b/x"])  # its first measurement breaks
    other = run(third, options(), Results(tmp_path), lambda line: None, only=["b"])
    assert [record.key for record in other.records] == ["b/x"], "the others were measured with other settings"


def test_a_missing_peer_is_named_and_the_others_are_measured(tmp_path):
    workload = Counting()
    lines, say = said()
    result = run(workload, options("here", "away"), Results(tmp_path), say)
    assert workload.seen_peers == ("here",)
    (sentence,) = result.missing
    assert sentence.startswith("away is missing: ")
    assert "no-such-package" in sentence
    assert "FOREWORD_BENCH_AWAY_PYTHON" in sentence
    assert sentence in lines
    assert result.to_json()["missing"] == [sentence]


def test_a_peer_may_live_in_another_python(monkeypatch):
    monkeypatch.setenv("FOREWORD_BENCH_HERE_PYTHON", "no/such/python")
    peer = Peer("here", "a peer")
    assert peer.python == "no/such/python"
    assert "does not run; correct FOREWORD_BENCH_HERE_PYTHON" in (peer.missing() or "")


def test_the_json_says_what_was_wanted_and_found(tmp_path):
    found = run(Counting(), options(), Results(tmp_path), lambda line: None, only=["a"]).to_json()
    assert found["ratios"] == {"a/x/here": 1, "a/y/here": 2}
    assert found["limits"] == [{"name": "a/x/count", "at_least": 2, "found": 1, "met": False}]
    facts = found["runs"][0]["facts"]
    assert {"torch", "transformers", "python", "foreword"} <= set(facts["versions"])
    assert facts["machine"]["cores"] >= 1
    assert facts["machine"]["memory_bytes"] > 1 << 28


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal("a", 2.0, value=2.0), True),
        (Goal("a", 2.0, value=1.9), False),
        (Goal("a", 2.0, at_most=True, value=2.0), True),
        (Goal("a", 2.0, at_most=True, value=2.1), False),
        (Goal("a", 2.0, value=None), False),
        (Goal("a", 2.0, at_most=True, value=None), False),
    ],
)
def test_what_was_not_measured_is_not_met(goal, met):
    assert goal.met is met


def test_one_of_several_packages_is_enough():
    assert Peer("here", "a peer", needs=("no-such-package|pytest",)).missing() is None
    lacking = Peer("here", "a peer", needs=("no-such-package|nor-this",), shares="there").missing() or ""
    assert "has no package no-such-package or nor-this" in lacking
    assert "FOREWORD_BENCH_THERE_PYTHON" in lacking
