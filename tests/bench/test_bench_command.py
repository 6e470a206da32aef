"""``foreword bench``: names, refusals, JSON and the page."""

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
        (
            ["nothing"],
            "there is no workload 'nothing'; "
            "choose ttft, mixed, many, step, serve, train, many-train, search, quality, distill, conformance or "
            "tables.",
        ),
        (["train", "--peer", "vllm"], "workload train has no peer 'vllm'; choose peft."),
        (["ttft", "--engine", "other"], "workload ttft has no engine 'other'; choose embedded, vllm, llamacpp."),
        (["serve", "--engine", "vllm"], "workload serve has no engine 'vllm'; choose embedded."),
        (
            ["mixed", "--engine", "vllm", "--peer", "vllm"],
            "workload mixed has no peer 'vllm' beside the engine vllm; "
            "choose peft, peft_lora, transformers_padded, vllm_lora.",
        ),
        (["train", "--engine", "vllm"], "workload train has no engine 'vllm'; leave --engine out."),
        (["train", "--data", "no/folder"], "no data sets in no/folder"),
        (["train", "--only", "nothing"], "nothing called 'nothing' to measure; choose from prompt-tuning, "),
        (["tables", "--out", "no/folder/page.md"], "no/folder/page.md cannot be written"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(monkeypatch, capsys, tmp_path, arguments, sentence):
    if "--data" not in arguments and arguments[0] != "tables":
        arguments = [*arguments, "--data", tmp_path]
    assert bench(monkeypatch, *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_json_and_out_say_the_same(monkeypatch, capsys, tmp_path, tiny_folder, tiny_data):
    where = ["--model", tiny_folder, "--data", tiny_data, "--results", tmp_path / "results"]
    code = bench(
        monkeypatch,
        "quality",
        "--only",
        "sst2/majority",
        *where,
        "--limit",
        6,
        "--json",
        "--out",
        tmp_path / "out.json",
    )
    assert code == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"ratios", "limits", "runs"} <= set(printed)
    assert printed == json.loads((tmp_path / "out.json").read_text())
    assert printed["runs"][0]["key"] == "sst2/majority"
    assert (tmp_path / "results" / "quality" / "sst2-majority.json").is_file()
    assert bench(monkeypatch, "tables", "--results", tmp_path / "results", "--out", tmp_path / "page.md") == 0
    assert "| majority | majority | 0.500 |" in (tmp_path / "page.md").read_text()


def test_a_failed_cell_fails_the_command_and_keeps_nothing(monkeypatch, capsys, tmp_path, tiny_data):
    where = ["--model", tmp_path / "no-model", "--data", tiny_data, "--results", tmp_path / "results"]
    assert bench(monkeypatch, "quality", "--only", "sst2/manual", *where, "--json") == 1
    (sentence,) = json.loads(capsys.readouterr().out)["failed"]
    assert sentence.startswith("sst2/manual: manual failed: UnknownModel")
    assert not (tmp_path / "results").exists()


def test_conformance_needs_no_data_and_tables_fill_the_readme(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert bench(monkeypatch, "conformance", "--only", "llama", "--only", "mamba", "--data", "no/folder") == 0
    assert "train/largest_difference" in capsys.readouterr().out
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Us\n<!-- conformance -->\nold\n<!-- /conformance -->\nbehind\n")
    assert bench(monkeypatch, "tables") == 0
    text = (tmp_path / "README.md").read_text()
    assert "old" not in text
    assert text.startswith("# Us\n<!-- conformance -->\n\n| model | train |")
    assert "| Mamba | refused: has linear_attention layers, whose state no key/value prefix can carry" in text
    assert text.endswith("<!-- /conformance -->\nbehind\n")
    assert "| Llama |" in (tmp_path / "docs" / "benchmarks.md").read_text()
    (tmp_path / "README.md").write_text("no markers")
    assert bench(monkeypatch, "tables") != 0
    assert "the README must have <!-- conformance -->" in capsys.readouterr().err


def test_the_engine_is_handed_on(monkeypatch, capsys, tmp_path, tiny_data, no_vllm):
    where = ["--data", tiny_data, "--results", tmp_path / "results"]
    assert bench(monkeypatch, "many", "--engine", "vllm", *where) != 0
    assert f"vllm {no_vllm}" in capsys.readouterr().err
    assert bench(monkeypatch, "many", "--engine", "vllm", "--only", "cold", *where) != 0
    assert not (tmp_path / "results").exists()
