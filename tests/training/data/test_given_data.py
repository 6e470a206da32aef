"""Rows as people have them: in memory, too long, with labels that are missing or alike, in fields of any name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

from foreword.bank.bank import Bank
from foreword.engine.engine import Engine
from foreword.errors import DataError, SettingError, TemplateError, UsageError
from foreword.evaluation.evaluate import evaluate, fit_rows
from foreword.text.long_rows import LongRows
from foreword.text.rows import data_digest, read_rows
from foreword.training.data.training_data import TrainingData
from foreword.training.recipe import Recipe
from foreword.training.run import Run
from foreword.training.train import train
from tiny_models import tiny_model
from training.small_data import examples, recipe, write_csv, write_jsonl

ROWS = examples(20, 1)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(rows, kind: type[UsageError] = DataError, **changes) -> str:
    with pytest.raises(kind) as caught:
        TrainingData.read(Recipe(data=rows, **changes))
    return str(caught.value)


@pytest.mark.parametrize("wrap", [list, datasets.Dataset.from_list, pandas.DataFrame])
def test_rows_in_memory_are_learned_from_as_a_file_is(wrap):
    said: list[str] = []
    held = examples(8, 2)
    results = [
        train(tiny_model("llama"), recipe(Path(), data=data, eval=evaluation, out=out, max_steps=3), say=said.append)
        for data, evaluation, out in (
            (write_jsonl(Path("a.jsonl"), ROWS), write_jsonl(Path("b.jsonl"), held), "file"),
            (wrap(ROWS), wrap(held), "memory"),
        )
    ]
    first, second = (result.task.prefix.keys[0] for result in results)
    assert first.equal(second)
    provenance = results[1].task.provenance
    assert provenance["data_sha256"] == data_digest(ROWS)
    assert provenance["recipe"]["data"] == "rows in memory"
    json.dumps(provenance)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "row 3: label null is no label; write the label, or take the row out."),
        (float("nan"), "row 3: label NaN is no label"),
        ("", "row 3: the label is empty; write the label, or take the row out."),
        (" \t", "row 3: the label is empty"),
    ],
)
def test_a_label_that_is_missing_is_refused(label, message):
    assert refused([*ROWS[:2], {"text": "x", "label": label}]).startswith(message)
    frame = pandas.DataFrame([*ROWS[:2], {"text": "x", "label": label}])
    assert refused(frame).startswith(message.replace("null", "NaN"))


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (
            float("nan"),
            TemplateError,
            "row 3: field 'text' is NaN, not text; give it a text, or write {text?} if it may",
        ),
        (None, TemplateError, "row 3: field 'text' is null, not text"),
        ("", DataError, "row 3: field 'text' is empty, so there is nothing to learn from"),
        ("  ", DataError, "row 3: field 'text' is empty"),
    ],
)
def test_a_text_that_is_missing_is_refused(text, kind, message):
    assert refused([*ROWS[:2], {"text": text, "label": "y"}], kind, template="{text}{mask}").startswith(message)


def test_the_first_row_that_is_wrong_is_named_and_the_near_field():
    assert refused(ROWS, TemplateError, template="{txt}{mask}").startswith(
        "row 1: the row has no field 'txt' (it has: label, text); did you mean 'text'?"
    )
    said = refused(ROWS, label_field="Label", template="{text}{mask}")
    assert said == "row 1: the row has no field 'Label' (it has: text, label); pass --label-field label."
    file = write_csv(Path("d.csv"), [{"fine": "a", "y": "n"}, {"fine": "b", "y": "y"}])
    assert refused(file, template="{fine}{mask}").endswith(
        "pass --label-field, or --columns if the file has no header."
    )
    said = refused(ROWS, TemplateError, template="{text}{contxt?}{mask}")
    assert said == "row 1: no row has the field 'contxt' (this one has: text, label); did you mean 'text'?"


def test_labels_that_look_alike_or_like_none_are_warned_of():
    rows = [*ROWS, {"text": "a", "label": "Y "}, {"text": "b", "label": "nan"}, {"text": "b", "label": "y"}]
    data = TrainingData.read(Recipe(data=rows, eval=ROWS[:3]))
    assert any(
        "labels 'Y ' (1) and 'y'" in warning and "only in case or blanks" in warning for warning in data.warnings
    )
    assert "label 'nan' (1 rows) looks like a missing value" in data.warnings
    assert "1 texts stand in rows with different labels" in data.warnings
    assert "3 of 3 evaluation rows are training rows, too" in data.warnings
    assert TrainingData.read(Recipe(data=[{"text": str(n), "label": "yn"[n % 2]} for n in range(9)])).warnings == ()
    mixed = [{"text": str(n), "label": (0, 1, 1.0)[n % 3]} for n in range(9)]
    assert TrainingData.read(Recipe(data=mixed)).warnings == (
        "labels '1' (3) and '1.0' (3) differ only in how a number is written, and are learned as different labels",
    )


def test_columns_with_blanks_and_numbers_beside_them():
    rows = [{"Tweet text": f"t {n}", "ID": str(n), "Label": "yn"[n % 2]} for n in range(6)]
    data = TrainingData.read(Recipe(data=write_csv(Path("t.csv"), rows), label_field="Label"))
    assert data.template is not None
    assert data.template.source == "{Tweet text}\nLabel:{mask}"
    assert data.overview == (
        "t.csv (CSV): 6 rows, 1 of them to evaluate; labels n 3, y 3; template '{Tweet text}\\nLabel:{mask}'"
    )
    Path("bare.csv").write_text("".join(f"t {n};{'yn'[n % 2]}\n" for n in range(6)))
    data = TrainingData.read(Recipe(data="bare.csv", columns="text,label", delimiter=";"))
    assert len(data.train_rows) == 5
    assert "without a header" in data.source


LONG = [*ROWS[:6], {"text": "a" + "x" * 400 + "b", "label": "n"}]


def run_of(rows, **changes) -> Run:
    settings = {"template": "{text}{mask}", "init": "random", "length": 16, "eval": ROWS[6:9]}
    return Run.from_recipe(tiny_model("llama"), Recipe(data=rows, **{**settings, **changes}))


def test_long_rows_are_refused_left_out_or_cut():
    with pytest.raises(
        DataError, match=r"row 7: .* the context of tiny-llama is 256; shorten the row, or pass --long-"
    ):
        run_of(LONG)
    skipped = run_of(LONG, long_rows="skip")
    assert len(skipped.examples) == 6
    assert skipped.data.warnings == ("left out 1 of 10 rows, which were too long",)
    cut = run_of(LONG, long_rows="cut text")
    assert len(cut.examples) == 7
    assert cut.data.warnings == ("cut the end of 'text' in 1 of 10 rows, which were too long",)
    longest = max(example.num_tokens for example in cut.examples)
    assert longest + 16 + cut.example_builder.label_tokens == 256
    assert cut.data.train_rows[6].values["text"].startswith("axx")
    assert run_of(LONG, long_rows="cut").examples == cut.examples


def test_a_maximum_length_counts_the_answer_and_not_the_virtual_tokens():
    rows = [{"text": "x" * count, "label": "yn"[count % 2]} for count in range(1, 9)]
    skipped = run_of(rows, long_rows="skip", max_length=6)
    assert [len(row.values["text"]) for row in skipped.data.train_rows] == [1, 2, 3, 4]
    with pytest.raises(DataError, match="row 5: the example has 7 tokens with its answer, --max-length is 6; shorten"):
        run_of(rows, max_length=6)
    cut = run_of(rows, long_rows="cut text", max_length=6, eval=rows)
    assert {len(row.values["text"]) for row in cut.data.eval_rows} == {1, 2, 3, 4}
    with pytest.raises(DataError, match="all 8 rows are too long"):
        run_of(rows, long_rows="skip", max_length=2)
    with pytest.raises(DataError, match="row 1: the row is too long even without field 'text'"):
        run_of(rows, long_rows="cut text", template="four{text}{mask}", max_length=3)


def test_long_rows_that_cannot_be_cut():
    with pytest.raises(SettingError, match="--long-rows must be refuse, skip or 'cut FIELD', got 'drop'"):
        Recipe(data=ROWS, long_rows="drop")
    with pytest.raises(SettingError, match=r"the template has no field 'body' to cut; name one of its fields \(text\)"):
        run_of(ROWS, long_rows="cut body")
    tags = [{"tokens": ["a", "b"], "label": [0, 1]}] * 4
    with pytest.raises(SettingError, match="would part words from their tags"):
        run_of(tags, eval=tags, template=None, long_rows="cut tokens")
    assert TrainingData.read(Recipe(data=tags)).labels == ("0", "1")


def test_long_rows_of_an_evaluation():
    lm = tiny_model("llama")
    task = train(lm, recipe(Path(), max_steps=1), say=lambda line: None).task
    rows = read_rows(LONG)
    with Engine(lm) as engine:
        assert len(fit_rows(engine, [task], rows, LongRows.parse("skip"), None).rows) == 6
        cut = fit_rows(engine, [task], rows, LongRows.parse("cut text"), None)
        assert evaluate(engine, task, cut.rows).n == 7
        with pytest.raises(UsageError, match="row 7: the row has more than 9 tokens"):
            fit_rows(engine, [task], rows, LongRows(), 9)


def test_a_task_remembers_its_label_field():
    rows = [{"text": row["text"], "mood": row["label"]} for row in ROWS]
    task = train(tiny_model("llama"), recipe(Path(), data=rows, eval=rows, label_field="mood", max_steps=1)).task
    bank = Bank("bank")
    published = bank.publish(task)
    assert json.loads(next(Path("bank").glob("run/versions/*/task.json")).read_text())["label_field"] == "mood"
    with Engine(tiny_model("llama")) as engine:
        assert evaluate(engine, bank.load(published.ref), rows).n == 20
        with pytest.raises(DataError, match="no field 'label'"):
            evaluate(engine, task, rows, label_field="label")
    other = train(tiny_model("llama"), recipe(Path(), max_steps=1, out="other"), name="other").task
    bank.publish(other)
    assert "label_field" not in json.loads(next(Path("bank").glob("other/versions/*/task.json")).read_text())


def test_optional_fields_are_learned_and_served_alike():
    rows = [{"q": "ab"[n % 2], **({"more": "z"} if n % 3 else {}), "label": "yn"[n % 2]} for n in range(12)]
    run = run_of(rows, eval=rows, template="{q}\n{more?}\nA:{mask}")
    texts = {tiny_model("llama").tokenizer.decode(example.prompt_ids) for example in run.examples}
    assert texts == {"a\nA:", "b\nA:", "a\nz\nA:", "b\nz\nA:"}
    assert re.fullmatch(r"rows in memory.*: 24 rows.*", run.data.overview)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"template": "{text}", "head": "linear", "verbalizer": {"y": [" yes"], "n": [" no"]}}, "--verbalizer"),
        ({"template": "{text}", "label_field": "tags", "verbalizer": {"p": [" x"], "q": [" y"]}}, "--verbalizer"),
        ({"template": "{text}{target:label}", "class_weights": "balanced"}, "--class-weights"),
        ({"target_field": "label", "class_weights": "balanced"}, "--class-weights"),
    ],
)
def test_a_setting_that_the_rows_do_not_use_is_refused(changes, flag):
    rows = [{"text": f"row {n} of many", "label": "yn"[n % 2], "tags": ["p", "q"][: n % 3]} for n in range(9)]
    assert f"so {flag} has no use; leave it out." in refused(rows, SettingError, **changes)


def test_an_iterable_data_set_has_the_names_of_its_classes():
    classes = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    whole = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=classes)
    stream: Any = whole.to_iterable_dataset()
    rows = [row.values for row in read_rows(stream)]
    assert [row["label"] for row in rows] == ["yes", "no", None]
    assert rows == [row.values for row in read_rows(whole)]


def test_a_series_is_no_table():
    with pytest.raises(DataError, match="a Series, which has no columns; give a DataFrame"):
        read_rows(pandas.Series(["a"]))


@pytest.mark.parametrize(("name", "value"), [("problem_type", "regression"), ("class_weights", "balanced")])
def test_conversations_have_no_labels(name, value):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3
    said = refused(rows, SettingError, **{name: value})
    assert f"so --{name.replace('_', '-')} has no use; leave it out." in said
