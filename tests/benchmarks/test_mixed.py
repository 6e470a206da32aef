"""The `mixed` workload: all sides do the same work on a tiny model, and what the figures come to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.mixed import fixtures, foreword, padded, peft_generate
from benchmarks.mixed.workload import GOALS, Mixed, same_tokens
from foreword.bench.record import Results
from foreword.bench.runner import run
from foreword.bench.workload import Options

TEXT = " ".join(f"I want lamp {number} of order {number * 37}." for number in range(60))


@pytest.fixture
def settings(roomy_folder):
    sizes = {"requests": 5, "prefixes": 2, "length": 8, "prompt_tokens": 12, "output_tokens": 6}
    return {"model": roomy_folder, "dtype": "float32", "seed": 1, **sizes}


def test_all_sides_give_the_same_answers(settings, tmp_path):
    given = {**settings, "bank": str(tmp_path / "bank")}
    make = fixtures.start(given)
    prompts = make["tokens"](text=TEXT, count=settings["requests"], tokens=settings["prompt_tokens"])
    theirs = {**given, "folders": make["publish"](text=TEXT, folder=str(tmp_path / "peft")), "prompts": prompts}
    answers = {"foreword": foreword.start({**given, "engine": "embedded", "prompts": prompts})["run"]()["tokens"]}
    assert [len(answer) for answer in answers["foreword"]] == [6] * 5
    assert len({tuple(answer) for answer in answers["foreword"]}) > 1
    for name, start in (("peft", peft_generate.start), ("transformers_padded", padded.start)):
        found = start(theirs)["run"]()
        answers[name] = found["tokens"]
        assert found["seconds"] > 0
    assert same_tokens(answers) == {"peft": 1.0, "transformers_padded": 1.0}


def test_lora_does_as_much_work_with_an_adapter_for_every_prefix(settings):
    side = peft_generate.start_lora({**settings, "prompts": [[5, 6, 7]] * 5})
    tokens = side["run"]()["tokens"]
    assert [len(answer) for answer in tokens] == [6] * 5
    assert tokens[0] == tokens[2] == tokens[4] != tokens[1]


def test_adapters_for_others_are_those_that_peft_runs(settings, tmp_path):
    folders = peft_generate.start_saving(settings)["save"](folder=str(tmp_path))
    assert [Path(folder).name for folder in folders] == ["t0", "t1"]
    first, second = (load_file(Path(folder) / "adapter_model.safetensors") for folder in folders)
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[name], second[name]) for name in first)
    again = peft_generate.start_saving(settings)["save"](folder=str(tmp_path / "again"))
    assert all(map(torch.equal, first.values(), load_file(Path(again[0]) / "adapter_model.safetensors").values()))


def test_the_workload_from_end_to_end(roomy_folder, tiny_data, tmp_path, no_vllm):
    workload = Mixed()
    wanted = Options(tiny_data, roomy_folder, tuple(peer.key for peer in workload.peers), steps=1, limit=4)
    result = run(workload, wanted, Results(tmp_path), lambda line: None)
    assert result.failed == []
    assert result.missing[0] == f"vllm {no_vllm}"
    assert result.missing[1].startswith("vllm_lora is missing: ")
    assert "FOREWORD_BENCH_VLLM_PYTHON" in result.missing[1]
    (record,) = result.records
    assert set(record.metrics["runs"]) == {"foreword", "peft", "peft_lora", "transformers_padded"}
    assert set(result.summary.ratios) == {f"at-once/{name}" for name in ("peft", "peft_lora", "transformers_padded")}
    table = workload.tables(result.records)
    assert "| `vllm` | missing | missing | missing |" in table
    assert table.splitlines()[2].startswith("| foreword | ")


@pytest.mark.parametrize(("share", "met"), [(1.0, True), (0.99, False)])
def test_what_is_too_slow_is_not_met(make_record, share, met):
    ratios = {name: {"median": goal * share, "low": 0.0, "high": 99.0} for name, goal in GOALS.items()}
    summary = Mixed().summary([make_record("mixed", "at-once", {"runs": {}, "ratios": ratios})])
    assert [goal.met for goal in summary.goals] == [met] * len(GOALS)
    assert not any(goal.met for goal in Mixed().summary([]).goals)


def test_an_answer_counts_up_to_its_first_difference():
    lora = {"peft_lora": [[9, 9, 9, 9]], "vllm_lora": [[9, 9, 9, 9]]}
    assert same_tokens({"foreword": [[1, 2, 3, 4]], "peft": [[1, 2, 9, 4]], **lora}) == {"peft": 0.5}


def test_our_engine_on_vllm_is_no_peer_of_itself(make_record):
    found = {"runs": {"foreword": {"tokens_per_second": {"median": 9.0}}}, "ratios": {}, "same_tokens": {}}
    record = make_record("mixed", "vllm/at-once", found)
    assert [goal.name for goal in Mixed().summary([record]).goals] == [
        "vllm/at-once/peft",
        "vllm/at-once/transformers_padded",
    ]
    table = Mixed().tables([make_record("mixed", "at-once", found), record])
    ours, theirs = table.split("With `--engine vllm`:")
    assert "| `vllm` | missing |" in ours
    assert "`vllm`" not in theirs
    assert "| `vllm_lora` | missing |" in theirs
