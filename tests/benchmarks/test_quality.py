"""The `quality` workload: data sets, everybody who is measured, and what the records come to."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.quality import foreword_run, full_run, majority_run, peft_run
from benchmarks.quality.approaches import APPROACHES, PEERS
from benchmarks.quality.datasets import DATASETS
from benchmarks.quality.workload import Quality, selected
from foreword.bench.participants import OURS
from foreword.bench.record import Record, Results
from foreword.bench.runner import run
from foreword.bench.workload import Options
from foreword.errors import BenchError
from foreword.prompts.registry import METHODS
from foreword.text.rows import read_rows
from foreword.text.template import Template

WORKERS = {"foreword_run": foreword_run, "full_run": full_run, "majority_run": majority_run, "peft_run": peft_run}
REAL = Path(__file__).parents[3] / "shared" / "data"


def settings(dataset: str, approach: str, model: str, data: Path, folder: Path, steps: int = 4):
    made, how = DATASETS[dataset], APPROACHES[approach]
    files = made.write(data, folder)
    recipe = how.recipe(made, files, how.rates[-1] if how.rates else None, steps, seed=0)
    return {"model": model, "recipe": recipe, "peft": how.peft, "test": files.test, "metric": made.metric}


def figures(dataset: str, approach: str, *where):
    return WORKERS[APPROACHES[approach].module].figures(settings(dataset, approach, *where))


@pytest.mark.parametrize(
    ("dataset", "approach"),
    [
        ("sst2", "majority"),
        ("sst2", "manual"),
        ("sst2", "p-tuning-v2"),
        ("sst2", "pet"),
        ("sst2", "autoprompt"),
        ("sst2", "full"),
        ("sst2", "peft-prompt-tuning"),
        ("sst2", "peft-p-tuning-v2"),
        ("sst2", "peft-lora"),
        ("clinc150", "full"),
        ("clinc150", "prompt-tuning"),
        ("clinc150", "manual"),
        ("e2e", "full"),
        ("lama-p17", "p-tuning"),
        ("fewglue-copa", "p-tuning-v2"),
    ],
)
def test_everybody_has_figures(dataset, approach, tiny_folder, tiny_data, tmp_path):
    found = figures(dataset, approach, tiny_folder, tiny_data, tmp_path)
    assert found["n"] == len(read_rows(tmp_path / "test.jsonl"))
    assert 0 <= found["test"] <= 100
    assert found["metrics"][DATASETS[dataset].metric] == found["test"]
    learned = approach not in ("majority", "manual")
    assert (found["trained_parameters"] > 0) is learned
    assert (found["task_bytes"] > 0) is learned
    json.dumps(found)


def test_full_fine_tuning_learns_a_rule_and_keeps_the_best(tiny_folder, tiny_data, tmp_path):
    given = settings("sst2", "full", tiny_folder, tiny_data, tmp_path, steps=60)
    given["recipe"]["lr"] = 1e-2
    found = full_run.figures(given)
    assert found["dev"] == found["test"] == 1.0
    assert found["trained_parameters"] == found["model_parameters"]


@pytest.mark.parametrize("approach", ["peft-p-tuning-v2", "peft-lora"])
def test_peft_learns_a_rule_and_is_scored_through_the_import(approach, tiny_folder, tiny_data, tmp_path):
    given = settings("sst2", approach, tiny_folder, tiny_data, tmp_path, steps=60)
    given["recipe"]["lr"] = 3e-2
    found = peft_run.figures(given)
    assert found["dev"] == found["test"] == 1.0
    assert found["trained_parameters"] < found["model_parameters"]


def test_peft_is_refused_where_its_loss_would_be_another(tiny_folder, tiny_data, tmp_path):
    with pytest.raises(BenchError, match="one token"):
        peft_run.figures(settings("lama-p17", "peft-lora", tiny_folder, tiny_data, tmp_path))


def test_majority_is_the_most_frequent_label(tiny_folder, tiny_data, tmp_path):
    given = settings("sst2", "majority", tiny_folder, tiny_data, tmp_path)
    rows = [json.loads(line) for line in Path(given["recipe"]["data"]).read_text().splitlines()]
    few = [row for row in rows if row["label"] == "positive"] + rows[:4]
    Path(given["recipe"]["data"]).write_text("".join(json.dumps(row) + "\n" for row in few))
    expected = [row.values["label"] == "positive" for row in read_rows(given["test"])]
    assert majority_run.figures(given)["test"] == sum(expected) / len(expected)


def test_every_approach_exists_and_every_peer_is_used():
    used = {name for dataset in DATASETS.values() for name in dataset.approaches}
    assert used == set(APPROACHES)
    assert {APPROACHES[name].by for name in used} == {OURS, *(peer.key for peer in PEERS)}
    assert {approach.method for approach in APPROACHES.values()} <= set(METHODS)
    for dataset in DATASETS.values():
        for template in (dataset.template, dataset.soft_template, dataset.head_template, *dataset.patterns):
            assert template is None or Template.parse(template).source == template


def test_a_peer_that_is_not_wanted_has_no_cells():
    every = {case.key for case in Quality().cases(Options(Path(), "m", tuple(peer.key for peer in PEERS)))}
    ours = {case.key for case in Quality().cases(Options(Path(), "m", ()))}
    assert ours < every
    assert "sst2/full/lr=3e-05" in every - ours
    assert "sst2/p-tuning-v2" in ours
    assert not any("peft" in key or "manual" in key for key in ours)


def test_a_short_look_has_only_labels_that_could_be_learned(tiny_data, tmp_path):
    files = DATASETS["clinc150"].write(tiny_data, tmp_path, limit=1)
    learned = {row.values["label"] for file in (files.train, files.dev) for row in read_rows(file)}
    assert {row.values["label"] for row in read_rows(files.test)} <= learned
    assert set(files.verbalizer or {}) == {"report fraud", "play music", "book flight"}


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the data sets in ../shared/data")
@pytest.mark.parametrize("name", DATASETS)
def test_the_real_rows_fill_the_templates(name, tmp_path):
    dataset = DATASETS[name]
    files = dataset.write(REAL, tmp_path)
    for part in (files.train, files.dev, files.test):
        for row in read_rows(part):
            if dataset.encoder:
                assert len(row.values["tokens"]) == len(row.values["tags"])
            else:
                for template in (dataset.template, *dataset.patterns):
                    Template.parse(template).fill(row.values, row.where)
                assert files.verbalizer is None or row.values["label"] in files.verbalizer


def test_a_cell_in_its_own_process(tiny_folder, tiny_data, tmp_path):
    options = Options(tiny_data, tiny_folder, ("majority",), steps=2, limit=8)
    result = run(Quality(), options, Results(tmp_path), lambda line: None, only=["sst2/majority"])
    assert result.failed == []
    assert result.records[0].metrics["trained_parameters"] == 0


def record(dataset: str, approach: str, dev: float, test: float, rate: float | None = None, trained: int = 1) -> Record:
    given = {"dataset": dataset, "approach": approach, "metric": "accuracy", "rate": rate, "seed": 0}
    found = {"dev": dev, "test": test, "n": 10, "trained_parameters": trained, "model_parameters": 200}
    return Record("quality", f"{dataset}/{approach}/{rate}", given, {}, {**found, "task_bytes": 4, "seconds": 1.0})


def test_settings_are_chosen_on_dev_and_reported_on_test():
    records = [
        record("sst2", "full", dev=0.9, test=0.8, rate=1e-5, trained=200),
        record("sst2", "full", dev=0.8, test=0.99, rate=1e-4, trained=200),
        record("sst2", "p-tuning-v2", dev=0.1, test=0.8),
        record("sst2", "peft-p-tuning-v2", dev=0.5, test=0.4, rate=1e-3),
    ]
    assert selected(records)["sst2"]["full"].settings["rate"] == 1e-5
    assert Quality().summary(records).ratios == {"sst2/p-tuning-v2/full": 1.0, "sst2/p-tuning-v2/peft": 2.0}
    met = {goal.name: (goal.value, goal.met) for goal in Quality().summary(records).goals}
    assert met["sst2/p-tuning-v2/full"] == (1.0, True)
    assert met["sst2/p-tuning-v2/trained_share"] == (0.005, True)
    assert met["sst2/p-tuning-v2/peft"] == (2.0, True)
    assert met["sst2/p-tuning/peft"] == (None, False)
    table = Quality().tables(records)
    assert "| full | full | 0.800 | 200 | 100.00% | 4 | 1 | 1e-05 |" in table
    assert "0.990" not in table


def test_lama_is_the_mean_of_all_relations_or_nothing():
    relations = [name for name in DATASETS if name.startswith("lama-")]
    records = [record(name, "manual", 0.1, 0.2) for name in relations]
    records += [record(name, "p-tuning", 0.1, 0.4) for name in relations[1:]]
    (goal,) = Quality().summary(records).goals
    assert goal.value is None
    (goal,) = Quality().summary([*records, record(relations[0], "p-tuning", 0.1, 0.4)]).goals
    assert goal.value == pytest.approx(20.0)
    assert goal.met
    assert "| **mean** | **0.200** | - |" in Quality().tables(records)


def test_options_of_an_approach_are_json():
    for approach in APPROACHES.values():
        assert json.loads(json.dumps(approach.to_json())) == approach.to_json()
        assert set(approach.to_json()) <= set(asdict(approach))
