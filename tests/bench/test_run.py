"""What is measured, what is skipped, who is missing, and what went wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from foreword.bench.peers import Peer
from foreword.bench.record import Record, Results
from foreword.bench.run import run
from foreword.bench.workload import Cell, Limit, Options, Say, Summary
from foreword.errors import BenchError, UsageError

HERE, AWAY = Peer("here", "a peer"), Peer("away", "a peer", needs=("no-such-package",))


@dataclass
class Counting:
    """A workload whose figure is how often it was measured."""

    name: ClassVar[str] = "counting"
    about: ClassVar[str] = "It counts."
    peers: ClassVar[tuple[Peer, ...]] = (HERE, AWAY)
    engines: ClassVar[tuple[str, ...]] = ()
    reads_data: ClassVar[bool] = False
    measured: list[str] = field(default_factory=list)
    steps: int = 1
    seen_peers: tuple[str, ...] = ()

    def cells(self, options: Options) -> list[Cell]:
        self.seen_peers = options.peers
        return [self._cell(key) for key in ("a/x", "a/y", "b/x")]

    def _cell(self, key: str) -> Cell:
        def measure(say: Say) -> dict[str, Any]:
            say("measuring")
            self.measured.append(key)
            if key == "b/x" and self.measured.count("b/x") == 1:
                raise BenchError("it broke")
            return {"count": len(self.measured)}

        return Cell(key, {"steps": self.steps}, measure)

    def summary(self, records: list[Record]) -> Summary:
        return Summary({record.key: record.found["count"] for record in records}, [Limit("many", 2, 1.0)])

    def tables(self, records: list[Record]) -> str:
        return ""


def options(*peers: str) -> Options:
    return Options(Path("."), "model", peers)


def said() -> tuple[list[str], Say]:
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
    assert second.summary.ratios == {"a/x": 1, "a/y": 2, "b/x": 4}
    again = run(workload, options(), results, lambda line: None, only=["a/x"], again=True)
    assert workload.measured[-1] == "a/x"
    assert again.summary.ratios == {"a/x": 5, "a/y": 2, "b/x": 4}, "what was measured before counts with it"


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
    outcome = run(workload, options("here", "away"), Results(tmp_path), say)
    assert workload.seen_peers == ("here",)
    (sentence,) = outcome.missing
    assert sentence.startswith("away is missing: ")
    assert "no-such-package" in sentence
    assert "FOREWORD_BENCH_AWAY_PYTHON" in sentence
    assert sentence in lines
    assert outcome.to_json()["missing"] == [sentence]


def test_a_peer_may_live_in_another_python(monkeypatch):
    monkeypatch.setenv("FOREWORD_BENCH_HERE_PYTHON", "no/such/python")
    peer = Peer("here", "a peer")
    assert peer.python == "no/such/python"
    assert "does not run; correct FOREWORD_BENCH_HERE_PYTHON" in (peer.missing() or "")


def test_the_json_says_what_was_wanted_and_found(tmp_path):
    found = run(Counting(), options(), Results(tmp_path), lambda line: None, only=["a"]).to_json()
    assert found["ratios"] == {"a/x": 1, "a/y": 2}
    assert found["limits"] == [{"name": "many", "at_least": 2, "found": 1.0, "met": False}]
    facts = found["runs"][0]["facts"]
    assert {"torch", "transformers", "python", "foreword"} <= set(facts["versions"])
    assert facts["machine"]["cores"] >= 1
    assert facts["machine"]["memory_bytes"] > 1 << 28


@pytest.mark.parametrize(
    ("limit", "met"),
    [
        (Limit("a", 2.0, 2.0), True),
        (Limit("a", 2.0, 1.9), False),
        (Limit("a", 2.0, 2.0, at_most=True), True),
        (Limit("a", 2.0, 2.1, at_most=True), False),
        (Limit("a", 2.0, None), False),
        (Limit("a", 2.0, None, at_most=True), False),
    ],
)
def test_what_was_not_measured_is_not_met(limit, met):
    assert limit.met is met


def test_one_of_several_packages_is_enough():
    assert Peer("here", "a peer", either=("no-such-package", "pytest")).missing() is None
    lacking = Peer("here", "a peer", either=("no-such-package", "nor-this"), lives_with="there").missing() or ""
    assert "has no package no-such-package or nor-this" in lacking
    assert "FOREWORD_BENCH_THERE_PYTHON" in lacking
