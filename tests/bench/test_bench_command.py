"""``foreword bench``: names, refusals and JSON."""

from __future__ import annotations

import json
import sys

import pytest

from foreword.cli import main


def bench(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["foreword", "bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "there is no workload 'nothing'; choose ttft, step, serve, many, conformance."),
        (
            ["train", "--peer", "peft"],
            "there is no workload 'train'; it is in a checkout of Foreword: python -m benchmarks train.",
        ),
        (["tables"], "there is no workload 'tables'; it is in a checkout of Foreword: python -m benchmarks tables."),
        (
            ["ttft", "--peer", "vllm"],
            "workload ttft has no peer 'vllm' beside the engine embedded; choose uncached; in a checkout of Foreword, "
            "python -m benchmarks ttft has more peers.",
        ),
        (["ttft", "--engine", "other"], "workload ttft has no engine 'other'; choose embedded, vllm, llamacpp."),
        (["serve", "--engine", "vllm"], "workload serve has no engine 'vllm'; choose embedded."),
        (["ttft", "--data", "no/folder"], "no data sets in no/folder"),
        (["many", "--only", "nothing"], "nothing called 'nothing' to measure; choose from uniform, zipf."),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(monkeypatch, capsys, tmp_path, arguments, sentence):
    if "--data" not in arguments:
        arguments = [*arguments, "--data", tmp_path]
    assert bench(monkeypatch, *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_json_and_out_say_the_same(monkeypatch, capsys, tmp_path, roomy_folder, tiny_data):
    where = ["--model", roomy_folder, "--data", tiny_data, "--results", tmp_path / "results"]
    short = ["--only", "b1", "--steps", 1, "--json", "--out", tmp_path / "out.json"]
    assert bench(monkeypatch, "step", *where, *short) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"ratios", "limits", "runs"} <= set(printed)
    assert printed == json.loads((tmp_path / "out.json").read_text())
    assert printed["runs"][0]["key"] == "b1"
    assert (tmp_path / "results" / "step" / "b1.json").is_file()


def test_a_failed_case_fails_the_command_and_keeps_nothing(monkeypatch, capsys, tmp_path, tiny_data):
    where = ["--model", tmp_path / "no-model", "--data", tiny_data, "--results", tmp_path / "results"]
    assert bench(monkeypatch, "step", "--only", "b1", *where, "--json") == 1
    (sentence,) = json.loads(capsys.readouterr().out)["failed"]
    assert sentence.startswith("b1: foreword failed: UnknownModel")
    assert not (tmp_path / "results").exists()


def test_conformance_needs_no_data(monkeypatch, capsys, tmp_path, tiny_folder):
    where = ["--model", tiny_folder, "--data", "no/folder", "--results", tmp_path / "results"]
    assert bench(monkeypatch, "conformance", *where) == 0
    assert "train/largest_difference" in capsys.readouterr().out


def test_the_engine_is_handed_on(monkeypatch, capsys, tmp_path, tiny_data, no_vllm):
    where = ["--data", tiny_data, "--results", tmp_path / "results"]
    assert bench(monkeypatch, "many", "--engine", "vllm", *where) != 0
    assert f"vllm {no_vllm}" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
