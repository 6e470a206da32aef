"""The `distill` workload: a tiny text from end to end, and what its figures come to."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bench_fixtures import write
from benchmarks.distill import workload as module
from benchmarks.distill.documents import DOCUMENTS, BenchDocument
from benchmarks.distill.workload import Distill
from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.workload import Options
from foreword.errors import BenchError
from server.running_server import CHATML

PEERS = tuple(peer.key for peer in Distill.peers)


@pytest.fixture
def chat_folder(roomy_folder, tmp_path) -> str:
    folder = shutil.copytree(roomy_folder, tmp_path / "model")
    file = Path(folder) / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": CHATML}))
    return str(folder)


@pytest.fixture
def texts(tmp_path) -> Path:
    text = "Lamp 3 costs 9 coins. It ships on Monday; refunds take 2 days."
    (tmp_path / "data").mkdir()
    row = {"doc_id": "lamps", "text": text}
    write(tmp_path / "data" / "shop" / "documents.jsonl", [row])
    questions = [{"doc_id": "lamps", "question": f"What is {n}?", "answers": ["9 coins"]} for n in range(3)]
    write(tmp_path / "data" / "shop" / "questions.test.jsonl", questions)
    return tmp_path / "data"


def test_the_workload_from_end_to_end(chat_folder, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DOCUMENTS", (BenchDocument("shop", "lamps"),))
    monkeypatch.setattr(module, "SLOTS", 8)
    workload = Distill()
    options = Options(texts, chat_folder, PEERS, steps=2, limit=4)
    result = run(workload, options, Results(tmp_path / "results"), print)
    assert result.failed == []
    (record,) = result.records
    found = record.metrics
    assert (found["slots"], found["steps"], found["own"]["n"]) == (8, 2, 3)
    assert set(found["peers"]) == {"first_tokens", "summary"}
    assert found["bytes"]["full"] > found["peers"]["first_tokens"]["bytes"] > found["bytes"]["distilled"]
    goals = {goal.name: goal for goal in result.summary.goals}
    assert goals["shop/lamps/gap_closed"].value == found["gap_closed"]
    assert result.summary.ratios["shop/lamps/full/bytes"] == found["bytes_ratio"]
    table = workload.tables(result.records)
    assert "| shop/lamps, **8 slots** |" in table
    assert "| `summary` |" in table
    assert "| shop/lamps | 3 |" in table


@pytest.mark.parametrize(("gap", "seconds", "times", "met"), [(0.8, 600, 14, True), (0.79, 601, 13.9, False)])
def test_what_is_worse_is_not_met(make_record, gap, seconds, times, met):
    speed = {"full": 10.0, "distilled": 20.0}
    found = {"gap_closed": gap, "seconds": seconds, "bytes_ratio": times, "decode": speed}
    records = [make_record("distill", text.key, found) for text in DOCUMENTS]
    summary = Distill().summary(records)
    assert [goal.met for goal in summary.goals] == [met] * 3 * len(DOCUMENTS)
    assert summary.ratios["policies/tau2_telecom/full/decode"] == 2
    assert not any(goal.met for goal in Distill().summary([]).goals)


def test_texts_that_are_not_there(texts):
    with pytest.raises(BenchError, match="there is no document 'chairs'"):
        replace(BenchDocument("shop", "lamps"), id="chairs").read(texts)
    assert BenchDocument("shop", "lamps").questions(texts)[0]["answers"] == ["9 coins"]
