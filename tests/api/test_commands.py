"""The commands as functions: what they publish, what they leave in the run folder, and what they refuse at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword import errors
from foreword.bank.bank import Bank
from server.running_server import foreign_task, label_task, learned_task
from training.small_data import examples, recipe

ROWS = examples(48, 1)


def quiet(line: str) -> None:
    del line


@pytest.fixture
def own_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bank:
    """A bank that is the commands' one for a test."""
    monkeypatch.setenv("FOREWORD_BANK", str(tmp_path / "bank"))
    return Bank()


def test_train_publishes_what_it_learned(lm, own_bank: Bank, tmp_path: Path):
    result = foreword.train(lm, recipe(tmp_path, max_steps=3), publish="letters", say=quiet)
    assert result.task.ref == f"letters@{own_bank.current('letters')}"
    assert (result.folder / "task" / "task.json").is_file()
    again = foreword.train(lm, recipe(tmp_path, max_steps=1, init="task:letters", length=None, out=str(tmp_path / "b")))
    assert again.task.version == ""
    assert own_bank.names() == ["letters"]


def test_train_says_at_once_what_it_would_refuse_later(own_bank: Bank, tmp_path: Path):
    """Before the model is loaded: a model of this name does not exist."""
    with pytest.raises(errors.UsageError, match="name"):
        foreword.train("no-such-model", recipe(tmp_path), publish="Not a name")
    with pytest.raises(errors.SettingError, match="no task can carry"):
        foreword.train("no-such-model", recipe(tmp_path, method="pet", weights="all"), publish="a")
    with pytest.raises(errors.SettingError, match="varies it"):
        foreword.search("no-such-model", recipe(tmp_path), {"lr": [0.1, 0.2]})
    with pytest.raises(errors.UnknownTask):
        foreword.compose(["none", "neither"], lm="no-such-model")
    with pytest.raises(errors.UsageError, match="one of system and text"):
        foreword.publish("a", lm="no-such-model")
    with pytest.raises(errors.UsageError, match="name"):
        foreword.publish("Not a name", text="hello", lm="no-such-model")
    with pytest.raises(errors.SettingError, match="no_publish"):
        foreword.train_many("no-such-model", recipe(tmp_path), publish_prefix="a-", no_publish=True)


def test_train_refuses_to_start_from_a_task_of_another_model(lm, own_bank: Bank, tmp_path: Path):
    own_bank.publish(foreign_task("foreign"))
    with pytest.raises(errors.ModelMismatch):
        foreword.train(lm, recipe(tmp_path, init="task:foreign"), say=quiet)


def test_search_publishes_the_winner(lm, own_bank: Bank, tmp_path: Path):
    settings = recipe(tmp_path, lr=None, max_steps=8)
    result = foreword.search(lm, settings, {"lr": [0.01, 0.1]}, publish="best", halving=None, say=quiet)
    assert own_bank.names() == ["best"]
    assert len(result.trials) == 2
    assert (result.folder / "task" / "task.json").is_file()


def many(lm, tmp_path: Path, **settings: Any):
    rows = [{**row, "task": name} for name in ("anna", "ben") for row in ROWS[:20]]
    made = recipe(tmp_path, data=rows, eval=None, max_steps=2)
    return foreword.train_many(lm, made, say=quiet, **settings)


def test_train_many_takes_rows_in_memory(lm, own_bank: Bank, tmp_path: Path):
    report = many(lm, tmp_path, publish_prefix="user-", publish_all=True, at_once=2)
    assert own_bank.names() == ["user-anna", "user-ben"]
    assert len(report.records) == 2
    assert (tmp_path / "run" / "summary.json").is_file()


def test_train_many_publishes_nothing_if_asked(lm, own_bank: Bank, tmp_path: Path):
    many(lm, tmp_path, no_publish=True)
    assert own_bank.names() == []
    assert sorted(each.name for each in (tmp_path / "run" / "tasks").iterdir()) == ["anna", "ben"]


def test_train_many_names_rows_and_settings_without_a_task(lm, tmp_path: Path):
    with pytest.raises(errors.DataError, match="row 1 has no task in field 'user'"):
        many(lm, tmp_path, task_field="user")
    with pytest.raises(errors.SettingError, match="carla"):
        many(lm, tmp_path, tasks={"carla": {"lr": 0.1}})
    with pytest.raises(errors.UsageError, match="row 1: a task name"):
        many(lm, tmp_path, publish_prefix="Not ")


def test_publish_takes_results_tasks_and_run_folders(lm, own_bank: Bank, tmp_path: Path):
    result = foreword.train(lm, recipe(tmp_path, max_steps=1), say=quiet)
    assert foreword.publish(result, "first").name == "first"
    assert foreword.publish(result.folder, "second").name == "second"
    assert foreword.publish(result.task, "third").prefix.digest == result.task.prefix.digest
    assert foreword.publish(own_bank.load("first")).version.startswith("0002-")
    with pytest.raises(errors.UsageError, match="needs a name"):
        foreword.publish(result)
    with pytest.raises(errors.UsageError, match="needs a name"):
        foreword.publish(result.folder)
    with pytest.raises(errors.UsageError, match="no task in a int"):
        foreword.publish(3, "a")  # type: ignore[call-overload]
    with pytest.raises(errors.UsageError, match="make a new prompt"):
        foreword.publish(result, "a", text="hello")  # type: ignore[call-overload]
    assert own_bank.names() == ["first", "second", "third"]


def test_publish_computes_a_prompt(lm, own_bank: Bank):
    task = foreword.publish("kind", system="Be kind.", lm=lm)
    assert (task.kind, task.text, task.ref) == ("system", "Be kind.", f"kind@{own_bank.current('kind')}")
    with pytest.raises(errors.PublishConflict, match="base model"):
        foreword.publish(lm.name, text="hello", lm=lm)


def test_publish_takes_a_task_of_its_own_sampling(lm, own_bank: Bank, engine):
    task = foreword.publish("short", text="Once ", lm=lm, max_tokens=3, temperature=0, stop="zz", ttl="7d")
    assert own_bank.load("short").generation == {"max_tokens": 3, "temperature": 0, "stop": ["zz"]}
    assert own_bank.load("short").ttl == 7 * 86400
    assert engine.generate("upon", task=task).usage.completion_tokens == 3
    again = foreword.publish(task, max_tokens=5)
    assert (again.generation["max_tokens"], again.generation["temperature"], again.ttl) == (5, 0, 7 * 86400)
    with pytest.raises(errors.UsageError, match="no option 'max_token'"):
        foreword.publish("short", text="Once ", lm="no-such-model", max_token=3)  # type: ignore[call-overload]
    with pytest.raises(errors.UsageError, match="temperature"):
        foreword.publish("short", text="Once ", lm="no-such-model", temperature=-1)


def test_publish_over_a_task_of_another_model_needs_replace(lm, own_bank: Bank):
    own_bank.publish(foreign_task("poet"))
    with pytest.raises(errors.PublishConflict, match="another name"):
        foreword.publish(learned_task(lm, "poet"))
    assert foreword.publish(learned_task(lm, "poet"), replace=True).version.startswith("0002-")


def test_compose_takes_names_and_tasks(lm, own_bank: Bank):
    foreword.publish("front", text="Once upon a time. ", lm=lm)
    stack = foreword.compose(["front", label_task(lm)], "stack", lm=lm)
    assert own_bank.load("stack").template == "{text}\nMood:{mask}"
    assert not stack.exact
    assert foreword.compose(["front", "front"], lm=lm).task.version == ""


def test_peft_folders_go_out_and_come_back(lm, own_bank: Bank, tmp_path: Path):
    own_bank.publish(learned_task(lm, "poet"))
    assert foreword.export_peft("poet", tmp_path / "adapter", lm=lm) == "PREFIX_TUNING"
    back = foreword.import_peft(tmp_path / "adapter", "back", lm=lm)
    assert back.prefix.keys[0].equal(own_bank.load("poet").prefix.keys[0])
    assert foreword.import_peft(tmp_path / "adapter", lm=lm).name == "adapter"


def test_distil_takes_a_static_task_alone(lm, own_bank: Bank):
    with pytest.raises(errors.UsageError, match="no text at full length"):
        foreword.distill(lm, learned_task(lm, "poet"), say=quiet)
    with pytest.raises(errors.ModelMismatch):
        foreword.distill(lm, foreign_task("foreign"), say=quiet)


def test_evaluate_takes_dicts_and_every_kind_of_engine(lm, engine, own_bank: Bank):
    rows = [{"text": "a", "label": "good"}, {"text": "b", "label": "bad"}]
    own_bank.publish(label_task(lm, "elsewhere"))
    expected = foreword.evaluate(engine, "mood", rows).metrics
    assert foreword.evaluate(engine.engine, "elsewhere", rows).metrics == expected
    assert foreword.evaluate(lm, label_task(lm), rows).metrics == expected
    assert foreword.evaluate(engine, "mood", rows, limit=1).n == 1
    with pytest.raises(errors.UnknownTask):
        foreword.evaluate(engine, "elsewhere", rows)  # the engine's bank is another one
    assert foreword.evaluate(engine, "elsewhere", rows, bank=own_bank).n == 2
    with pytest.raises(errors.DataError, match="row 2"):
        foreword.evaluate(engine, "mood", [rows[0], {"text": "b"}])
    pandas = pytest.importorskip("pandas")
    assert foreword.evaluate(engine, "mood", pandas.DataFrame(rows)).metrics == expected
