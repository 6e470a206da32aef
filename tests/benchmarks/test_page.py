"""The page in the docs is what the records say, and says it whole."""

from __future__ import annotations

from pathlib import Path

from benchmarks.conformance.families import FAMILIES
from benchmarks.page import page
from benchmarks.registry import WORKLOADS
from foreword.bench.record import Record, Results

ROOT = Path(__file__).parents[2]
FACTS = {
    "started": "2026-01-02",
    "commit": "abc",
    "versions": {"foreword": "1"},
    "machine": {"system": "Linux", "cpu": "A", "cores": 2, "memory_bytes": 8 << 30},
}


def test_the_page_is_not_stale():
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert text == page(WORKLOADS, Results(ROOT / "bench" / "results")), "run `python -m benchmarks tables`"


def test_every_family_is_in_the_matrix():
    measured = {record.key for record in Results(ROOT / "bench" / "results").all("conformance")}
    assert measured == set(FAMILIES), "run `python -m benchmarks conformance`"


def test_a_page_with_a_losing_row(tmp_path):
    run = {"samples_per_second": {"median": 2.0, "low": 1.0, "high": 3.0}, "peak_bytes": 10**9, "losses": []}
    other = {**run, "samples_per_second": {"median": 4.0, "low": 1.0, "high": 3.0}}
    ratios = {"samples_per_second": {"median": 0.5, "low": 0.4, "high": 0.6}, "peak_memory": 1.0, "memory_growth": 1.5}
    found = {"runs": {"foreword": run, "peft": other}, "ratios": {"peft": ratios}}
    settings = {"length": 32, "seed": 0}
    Results(tmp_path).keep(Record("train", "p-tuning-v2", settings, FACTS, found))
    Results(tmp_path).keep(Record("train", "p-tuning-v2/curve", settings, FACTS, {"difference": {"peft": 2e-5}}))
    text = page(WORKLOADS, Results(tmp_path))
    assert (
        "| p-tuning-v2 | 32 | 2.0 | 4.0 | **0.50** (0.40 to 0.60) | 1.00 GB | 1.00 GB | 1.00 | 1.50 | 2.0e-05 |" in text
    )
    assert "| p-tuning-v2/peft/samples_per_second | >= 2 | 0.5 | **not met** |" in text
    assert "| p-tuning-v2/peft/curve_difference | <= 0.01 | 2e-05 | met |" in text
    assert "- 2 cores of A, 8 GiB; foreword 1. Measured 2026-01-02, seed 0, commit abc; + is" in text
    assert max(len(line) for line in text.splitlines() if "|" not in line) <= 120
    assert "## quality" not in text


def test_alone_without_peers(tmp_path):
    run = {"samples_per_second": {"median": 2.0, "low": 1.0, "high": 3.0}, "peak_bytes": 10**9, "losses": []}
    found = {"runs": {"foreword": run}, "ratios": {}}
    Results(tmp_path).keep(Record("train", "p-tuning-v2", {"length": 32, "seed": 0}, FACTS, found))
    text = page(WORKLOADS, Results(tmp_path))
    assert "| p-tuning-v2 | 32 | 2.0 | - | - | 1.00 GB | - | - | - | - |" in text
    assert "not measured" in text


def test_records_of_one_machine_share_a_line(tmp_path):
    run = {"samples_per_second": {"median": 2.0, "low": 1.0, "high": 3.0}, "peak_bytes": 10**9, "losses": []}
    found = {"runs": {"foreword": run}, "ratios": {}}
    for key, day, commit in (("p-tuning", "2026-01-03", "def"), ("p-tuning-v2", "2026-01-02", "abc")):
        facts = {**FACTS, "started": day, "commit": commit}
        Results(tmp_path).keep(Record("train", key, {"length": 32, "seed": 0}, facts, found))
    text = page(WORKLOADS, Results(tmp_path))
    assert text.count("2 cores of A") == 1
    assert text.index("| p-tuning | 32 |") < text.index("| p-tuning-v2 | 32 |")
    assert "Measured 2026-01-02 to 2026-01-03, seed 0, commit abc, def" in " ".join(text.split())


def test_a_peer_that_was_missing_stays_on_the_page_and_is_not_met(tmp_path):
    def spread(value):
        return {"median": value, "low": value, "high": value}

    run = {"seconds": spread(2.0), "tokens_per_second": spread(32.0)}
    found = {"runs": {"foreword": run, "peft": run}, "ratios": {"peft": spread(1.0)}, "same_tokens": {"peft": 1.0}}
    Results(tmp_path).keep(Record("mixed", "at-once", {"seed": 0}, FACTS, found))
    text = page(WORKLOADS, Results(tmp_path))
    assert "| `peft` | 32 | **1** (1 to 1) | 1.00 |" in text
    assert "| `vllm` | missing | missing | missing |" in text
    assert "| at-once/peft | >= 8 | 1 | **not met** |" in text
    assert "| at-once/vllm | >= 1.5 | not measured | **not met** |" in text
