"""Many tasks in one run: each learns what it learns alone, and starts, ends, fails and resumes without the others."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foreword.core import Task
from foreword.errors import DataError, PublishConflict, SettingError, TrainingError, UsageError
from foreword.training.data.training_data import TrainingData
from foreword.training.loop import distributed
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.many import trainer as many_trainer
from foreword.training.many.config import MultiTaskConfig
from foreword.training.many.report import MultiTaskReport
from foreword.training.many.task_source import open_task_source
from foreword.training.many.train_many import train_many
from foreword.training.recipe import Recipe
from foreword.training.train import train
from tiny_models import tiny_model
from training.loop.test_concurrent import difference
from training.small_data import ANSWERS, examples, write_jsonl

OPPOSITE = dict(zip(ANSWERS, reversed(ANSWERS.values()), strict=True))


def check_name(name: str) -> None:
    if name != name.lower():
        raise UsageError(f"{name!r} is no name; choose another name.")


def rows_of(index: int, count: int = 20) -> list[dict[str, str]]:
    return examples(count, 40 + index, OPPOSITE if index % 2 else ANSWERS)


def folder_of(place: Path, *names: str) -> Path:
    place.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        write_jsonl(place / f"{name}.jsonl", rows_of(index))
    return place


def config(data: Path, out: Path, tasks=None, **changes) -> MultiTaskConfig:
    own = {
        name: changes.pop(name) for name in ("at_once", "min_rows", "shared_init", "shared_length") if name in changes
    }
    defaults = {"template": "{text}{mask}", "init": "random", "length": 4, "max_steps": 6, "lr": 0.1, "batch_size": 4}
    return MultiTaskConfig(
        Recipe(**{"data": str(data), "out": str(out), **defaults, **changes}), out, tasks or {}, **own
    )


class FakeBank:
    """A ``publish`` callback that keeps the tasks it was given."""

    def __init__(self) -> None:
        self.tasks: dict[str, list[Task]] = {}

    def __call__(self, task: Task, better: bool) -> str | None:
        self.tasks.setdefault(task.name, []).append(task)
        return f"{task.name}@1" if better else None


def learn(settings: MultiTaskConfig, publish, field="task"):
    train_source = open_task_source(settings.recipe.data, field, check_name)
    records = train_many(tiny_model("llama"), settings, train_source, None, publish, None, lambda _: None)
    return {record["task"]: record for record in records}


def test_every_task_learns_what_it_learns_alone(tmp_path):
    """Three of them have two places, one has its own rate and steps, and one is left out."""
    data = folder_of(tmp_path / "users", "anna", "ben", "cleo")
    write_jsonl(data / "few.jsonl", rows_of(0, 3))
    own = {"ben": {"lr": 0.05, "max_steps": 4}}
    bank = FakeBank()
    records = learn(config(data, tmp_path / "run", own, at_once=2), bank)
    assert {name: record["status"] for name, record in records.items()} == {
        **dict.fromkeys(("anna", "ben", "cleo"), "learned"),
        "few": "left out",
    }
    assert "3 rows, fewer than 8" in records["few"]["why"]
    assert [records[name]["steps"] for name in ("anna", "ben")] == [6, 4]
    for name in ("anna", "ben", "cleo"):
        recipe = config(data, tmp_path, own).task_recipe(name)
        alone = train(
            tiny_model("llama"),
            replace(recipe, data=str(data / f"{name}.jsonl"), out=str(tmp_path / f"alone-{name}")),
            say=lambda _: None,
        )
        (task,) = bank.tasks[name]
        assert difference(task.prefix, alone.task.prefix) < 1e-4
        assert records[name]["metrics"]["accuracy"] == alone.metrics["accuracy"]
        assert records[name]["metrics_before"]["accuracy"] == alone.before["accuracy"]


def test_one_file_gives_the_tasks_that_a_folder_gives(tmp_path):
    data = folder_of(tmp_path / "users", "anna", "ben")
    mixed = [
        {"who": name, **row}
        for pair in zip(rows_of(0), rows_of(1), strict=True)
        for name, row in zip(("anna", "ben"), pair, strict=True)
    ]
    file = tmp_path / "all.jsonl"
    write_jsonl(file, mixed)
    one, other = FakeBank(), FakeBank()
    learn(config(data, tmp_path / "one"), one)
    learn(config(file, tmp_path / "other"), other, field="who")
    for name in ("anna", "ben"):
        assert difference(one.tasks[name][0].prefix, other.tasks[name][0].prefix) < 1e-6


def test_a_killed_run_resumes_to_the_same_result(tmp_path, monkeypatch):
    """It is killed two steps behind a snapshot, when one has ended meanwhile; a third of the tasks waits still."""
    data = folder_of(tmp_path / "users", "anna", "ben", "cleo")
    settings = {"at_once": 2, "tasks": {"anna": {"max_steps": 5}}}
    whole, part = FakeBank(), FakeBank()
    learn(config(data, tmp_path / "whole", **settings), whole)
    steps = 0
    step = many_trainer.ConcurrentTrainer.step

    def counted(self):
        nonlocal steps
        steps += 1
        if steps == 7:
            raise KeyboardInterrupt
        monkeypatch.setattr(many_trainer, "SNAPSHOT_INTERVAL", 0.0 if steps == 4 else 1e9)
        return step(self)

    monkeypatch.setattr(many_trainer.ConcurrentTrainer, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        learn(config(data, tmp_path / "part", **settings), part)
    assert set(part.tasks) == {"anna", "ben"}
    assert (tmp_path / "part" / "live-0").is_file()
    with pytest.raises(TrainingError, match="--resume"):
        learn(config(data, tmp_path / "part", **settings), part)
    resumed = config(data, tmp_path / "part", resume=True, **settings)
    learn(resumed, part)
    for name in ("anna", "ben", "cleo"):
        (one,), (other,) = whole.tasks[name], part.tasks[name]
        assert all(torch.equal(a, b) for a, b in zip(one.prefix.keys, other.prefix.keys, strict=True)), name
    assert not list((tmp_path / "part").glob("live-*"))


def test_new_missing_and_changed_tasks_touch_no_others(tmp_path):
    data = folder_of(tmp_path / "users", "anna", "ben", "cleo")
    bank = FakeBank()
    learn(config(data, tmp_path / "run"), bank)
    write_jsonl(data / "ben.jsonl", rows_of(1, 24))
    write_jsonl(data / "dora.jsonl", rows_of(3))
    (data / "cleo.jsonl").unlink()
    records = learn(config(data, tmp_path / "run", resume=True), bank)
    assert {name: len(tasks) for name, tasks in bank.tasks.items()} == {"anna": 1, "ben": 2, "cleo": 1, "dora": 1}
    assert set(records) == {"anna", "ben", "dora"}


def test_memory_holds_the_tasks_of_one_batch_alone(tmp_path, monkeypatch):
    data = folder_of(tmp_path / "users", *(f"u{index}" for index in range(9)))
    living: weakref.WeakSet[ConcurrentRun] = weakref.WeakSet()
    most = 0
    made, step = ConcurrentRun.__init__, many_trainer.ConcurrentTrainer.step

    def counted(self, *args):
        made(self, *args)
        living.add(self)

    def watched(self):
        nonlocal most
        gc.collect()
        most = max(most, len(living))
        return step(self)

    monkeypatch.setattr(ConcurrentRun, "__init__", counted)
    monkeypatch.setattr(many_trainer.ConcurrentTrainer, "step", watched)
    records = learn(config(data, tmp_path / "run", at_once=3, max_steps=2), FakeBank())
    assert len(records) == 9
    assert most == 3


def test_tasks_that_fail_or_cannot_be_published_stop_no_others(tmp_path):
    data = folder_of(tmp_path / "users", "anna", "ben", "cleo", "long")
    (data / "long.jsonl").write_text(json.dumps({"text": "x" * 300, "label": "y"}) + "\n", encoding="utf-8")
    with (data / "long.jsonl").open("a") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows_of(0))

    def publish(task, better):
        if task.name == "cleo":
            raise PublishConflict("the task 'cleo' serves another model; choose another name.")
        return "ref"

    records = learn(config(data, tmp_path / "run", {"ben": {"lr": 1e38}}), publish)
    assert {name: record["status"] for name, record in records.items()} == {
        "anna": "learned",
        "ben": "failed",
        "cleo": "failed",
        "long": "failed",
    }
    assert "--lr" in records["ben"]["why"]
    assert "long.jsonl line 1" in records["long"]["why"]


@pytest.mark.parametrize("method", ["p-tuning-v2", "prompt-tuning"])
def test_a_frozen_shared_prefix_stands_in_front_of_every_task(method, tmp_path):
    data = folder_of(tmp_path / "users", "anna", "ben")
    bank = FakeBank()
    settings = {"method": method, "shared_length": 3, "init": "auto"}
    learn(config(data, tmp_path / "run", **settings), bank)
    anna, ben = (bank.tasks[name][0].prefix for name in ("anna", "ben"))
    assert anna.length == ben.length == 7
    for one, other in zip((*anna.keys, *anna.values), (*ben.keys, *ben.values), strict=True):
        assert torch.equal(one[:, :3], other[:, :3])
        assert not torch.equal(one[:, 3:], other[:, 3:])
    shared = {bank.tasks[name][0].provenance["shared_sha256"] for name in ("anna", "ben")}
    assert len(shared) == 1


@pytest.mark.parametrize("method", ["p-tuning-v2", "prompt-tuning"])
def test_a_shared_start_is_never_learned_from_evaluation_rows(method, tmp_path, monkeypatch):
    data = folder_of(tmp_path / "users", "anna", "ben")
    seen = []
    from_rows = TrainingData.from_rows
    monkeypatch.setattr(
        "foreword.training.many.shared_init.TrainingData.from_rows",
        lambda *a, **k: seen.append(from_rows(*a, **k)) or seen[-1],
    )
    bank = FakeBank()
    learn(config(data, tmp_path / "run", method=method, shared_init=True), bank)
    pooled = next(each for each in seen if len(each.train_rows) > 20)
    held = {row.where for row in pooled.eval_rows}
    assert len(pooled.train_rows) == 36
    assert held
    assert not held & {row.where for row in pooled.train_rows}
    assert "shared_sha256" in bank.tasks["anna"][0].provenance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pet"}, "one task at a time"),
        ({"at_once": 0}, "--at-once"),
        ({"min_rows": 1}, "--min-rows"),
        ({"tasks": {"anna": {"method": "lora"}}}, "'method'"),
        ({"tasks": {"anna": {"lr": -1}}}, "'anna': --lr"),
        ({"shared_init": True, "shared_length": 3}, "give one of them"),
        ({"shared_length": 3, "method": "lora", "length": None}, "prefixes alone"),
        ({"shared_init": True, "init": "task:other"}, "where to start"),
        ({"shared_length": 2, "freeze_first": True}, "freezes already"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message, tmp_path):
    with pytest.raises(SettingError, match=message):
        config(tmp_path, tmp_path, **changes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"task": "A", "text": "x"}', "line 2: 'A' is no name"),
        ('{"text": "x"}', "line 2 has no task in field 'task'"),
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is list"),
    ],
)
def test_a_file_of_tasks_says_which_line_is_wrong(line, message, tmp_path):
    file = tmp_path / "all.jsonl"
    file.write_text('{"task": "anna", "text": "x", "label": "y"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        open_task_source(file, "task", check_name)


def test_a_folder_of_tasks_holds_files_of_rows_alone(tmp_path):
    data = folder_of(tmp_path / "users", "anna")
    (data / "anna.csv").write_text("text,label\nx,y\n", encoding="utf-8")
    with pytest.raises(DataError, match="would be one task"):
        open_task_source(data, "task", check_name)
    (data / "anna.csv").rename(data / "notes.txt")
    with pytest.raises(DataError, match="has to end in"):
        open_task_source(data, "task", check_name)


def test_no_task_that_can_be_learned_is_an_error(tmp_path):
    data = folder_of(tmp_path / "users", "anna")
    with pytest.raises(UsageError, match="none of the 1 tasks"):
        learn(config(data, tmp_path / "run", label_field="sentiment"), FakeBank())


def test_processes_share_tasks_by_their_names(monkeypatch):
    names = [f"user-{index}" for index in range(200)]
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares.append([name for name in names if distributed.is_own_work(name)])
    assert sorted(name for share in shares for name in share) == sorted(names)
    assert min(map(len, shares)) > 40


def test_the_report_gives_quantiles_of_gains():
    def record(name, before, after, **what):
        figures = {"metrics": {"accuracy": after}, "metrics_before": {"accuracy": before}}
        return {"task": name, "status": "learned", **figures, "better": after >= before, "published": None, **what}

    records = [record("a", 0.5, 0.9, published="a@1"), record("b", 0.5, 0.75), record("c", 0.5, 0.25)]
    summary = MultiTaskReport([*records, {"task": "d", "status": "left out", "why": "few"}]).to_json()
    assert summary["gains"] == pytest.approx(
        {"mean": 0.4 / 3, "median": 0.25, "low": 0.0, "high": 0.325, "least": -0.25, "most": 0.4}
    )
    assert (summary["n"], summary["learned"], summary["published"]) == (4, 3, ["a@1"])
    assert (summary["base_better"], summary["left_out"]) == (["c"], {"d": "few"})
