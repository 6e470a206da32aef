"""``python -m benchmarks``: names, refusals, the page."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.__main__ import main
from benchmarks.registry import WORKLOADS


def benchmarks(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "there is no workload 'nothing'; choose ttft, mixed, many, step, serve, train, "),
        (["train", "--peer", "vllm"], "workload train has no peer 'vllm'; choose peft."),
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
def test_what_is_not_there_is_refused_with_what_is(capsys, tmp_path, arguments, sentence):
    if "--data" not in arguments and arguments[0] != "tables":
        arguments = [*arguments, "--data", tmp_path]
    assert benchmarks(*arguments) == 2
    assert sentence in capsys.readouterr().err


def test_json_and_out_say_the_same(capsys, tmp_path, tiny_folder, tiny_data):
    where = ["--model", tiny_folder, "--data", tiny_data, "--results", tmp_path / "results"]
    short = ["--only", "sst2/majority", "--limit", 6, "--json", "--out", tmp_path / "out.json"]
    assert benchmarks("quality", *where, *short) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out.json").read_text())
    assert printed["runs"][0]["key"] == "sst2/majority"
    assert (tmp_path / "results" / "quality" / "sst2-majority.json").is_file()
    assert benchmarks("tables", "--results", tmp_path / "results", "--out", tmp_path / "page.md") == 0
    assert "| majority | majority | 0.500 |" in (tmp_path / "page.md").read_text()


def test_a_failed_case_fails_the_command_and_keeps_nothing(capsys, tmp_path, tiny_data):
    where = ["--model", tmp_path / "no-model", "--data", tiny_data, "--results", tmp_path / "results"]
    assert benchmarks("quality", "--only", "sst2/manual", *where, "--json") == 1
    (sentence,) = json.loads(capsys.readouterr().out)["failed"]
    assert sentence.startswith("sst2/manual: manual failed: UnknownModel")
    assert not (tmp_path / "results").exists()


def test_tables_write_the_page(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert benchmarks("conformance", "--only", "llama", "--only", "mamba", "--data", "no/folder") == 0
    assert "train/largest_difference" in capsys.readouterr().out
    (tmp_path / "docs").mkdir()
    assert benchmarks("tables") == 0
    text = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "| Llama |" in text
    assert "| Mamba |" in text


def test_it_runs_from_the_checkout(pytestconfig):
    command = [sys.executable, "-m", "benchmarks", "--help"]
    shown = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, timeout=120, check=True)
    assert all(name in shown.stdout for name in WORKLOADS)
