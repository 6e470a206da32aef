"""Everything wrong that a person can give: one sentence with the place and the mend, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword.core import Task
from foreword.errors import (
    DataError,
    ForewordError,
    ModelMismatch,
    TemplateError,
    TrainingError,
    VerbalizerError,
)
from foreword.prompts.lower import lower_tokens
from foreword.training.train import train
from tiny_models import tiny_model
from training.small_data import examples, recipe, write_jsonl

LABELLED = [{"text": "xa", "label": "y"}, {"text": "xb", "label": "n"}, {"text": "za", "label": "y"}]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Files go by their bare names, here and in the sentences."""
    monkeypatch.chdir(tmp_path)


def refused(
    rows: list | str | None = None, *, kind=ForewordError, family="llama", transfer: Task | None = None, **changes
) -> str:
    """The sentence; the run folder must not have been made."""
    if isinstance(rows, str):
        Path("bad.jsonl").write_text(rows, encoding="utf-8")
    elif rows is not None:
        write_jsonl(Path("bad.jsonl"), rows)
    data = {"data": "bad.jsonl"} if rows is not None else {}
    with pytest.raises(kind) as caught:
        train(tiny_model(family), recipe(Path(), **{**data, **changes}), transfer=transfer)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))
    assert not Path("run").exists()
    return sentence


def test_missing_field():
    said = refused([*LABELLED, {"txt": "xa", "label": "y"}], kind=TemplateError)
    assert said.startswith("bad.jsonl line 4: the row has no field 'text' (it has: label, txt); did you mean 'txt'?")


def test_missing_label():
    said = refused([*LABELLED, {"text": "xa"}], kind=DataError)
    assert said == "bad.jsonl line 4: the row has no field 'label' (it has: text); pass --label-field."


def test_missing_target():
    said = refused(LABELLED, template="{text}={target:answer}")
    assert said.startswith("bad.jsonl line 1: the row has no field 'answer'")


@pytest.mark.parametrize("value", [None, ["y"], {"is": "y"}])
def test_a_label_that_is_no_text(value):
    assert "line 4: label" in refused([*LABELLED, {"text": "xa", "label": value}])


def test_empty_files():
    assert refused("") == "bad.jsonl has no examples; give at least one line of data."
    assert refused("\n \n") == "bad.jsonl has no examples; give at least one line of data."
    said = refused(LABELLED[:1], eval=None, verbalizer={"y": " y", "n": " n"})
    assert said == "bad.jsonl has one example; give at least two, or --eval."


def test_a_missing_file():
    assert refused(data="nothing.jsonl") == "nothing.jsonl cannot be read: No such file or directory; check the path."
    assert refused(eval="nothing.csv").startswith("nothing.csv cannot be read")
    assert (
        refused(data="rows.txt")
        == "rows.txt has to end in .jsonl, .json, .csv, .tsv or .parquet; convert it to one of them."
    )


def test_broken_lines():
    assert refused('{"text": "xa", "label": "y"}\n{"text": ').startswith("bad.jsonl line 2 is not JSON (")
    assert refused('"text"\n').startswith("bad.jsonl line 1 is str, expected an object such as")
    said = refused('{"text": "\\ud800", "label": "y"}\n{"text": "xa", "label": "n"}\n')
    assert said.startswith("bad.jsonl line 1: the text has half of a surrogate pair")


def test_a_label_outside_the_verbalizer():
    rows = [*LABELLED, {"text": "xa", "label": "maybe"}]
    said = refused(rows, verbalizer={"y": " y", "n": " n"}, kind=VerbalizerError)
    assert said.startswith("bad.jsonl line 4: label 'maybe' is not in the verbalizer (labels: y, n)")
    held = write_jsonl(Path("held.jsonl"), rows)
    said = refused(LABELLED, eval=held, verbalizer={"y": " y", "n": " n"})
    assert said.startswith("held.jsonl line 4: label 'maybe'")


def test_one_label_is_no_choice():
    held = write_jsonl(Path("held.jsonl"), LABELLED[:1])
    assert "at least 2 labels" in refused(LABELLED[:1], eval=held)


def test_templates_without_an_answer():
    said = refused(template="{text}", kind=TemplateError)
    assert "has no place for the answer; add {mask}" in said
    assert "contradicts the template's own answer" in refused(template="{text}{mask}", target_field="label")
    assert "a verbalizer needs a template with {mask}" in refused(
        template="{text}{target:label}", verbalizer={"y": "y", "n": "n"}
    )


def test_a_template_that_cannot_be_guessed():
    rows = [{"premise": "a", "text": "b", "label": "y"}]
    said = refused(rows, template=None)
    assert said.startswith("bad.jsonl line 1: the row has 2 text fields (premise, text), so the template cannot be")
    said = refused(rows, template=None, label_field="labl", kind=DataError)
    assert said == "bad.jsonl line 1: the row has no field 'labl' (it has: premise, text, label); did you mean 'label'?"
    said = refused([{"input": "a", "output": "b"}], template=None, kind=DataError)
    assert "has no field 'label' (it has: input, output); pass --label-field, --target-field" in said


def test_a_prefix_of_another_model():
    other = Task("theirs", "static", lower_tokens(tiny_model("gpt2"), range(50, 66)))
    said = refused(init="task:theirs", length=None, transfer=other, kind=ModelMismatch)
    assert said.startswith("the task to start from, 'theirs', was made for another model: architecture is GPT2LMHead")


def test_transfer_of_another_length():
    other = Task("x", "static", lower_tokens(tiny_model("llama"), range(50, 55)))
    assert "has 5 virtual tokens, --length is 16" in refused(init="task:x", transfer=other)
    said = refused(init="task:x", length=None, transfer=other, method="prompt-tuning")
    assert "'x', has no soft tokens, only keys and values (static); name a task of prompt-tuning or p-tuning" in said


def test_longer_than_the_context():
    rows = [*LABELLED, {"text": "x" * 300, "label": "y"}]
    said = refused(rows)
    assert said.startswith("bad.jsonl line 4: the example has 318 tokens with its answer and 16 virtual tokens, the")
    held = write_jsonl(Path("held.jsonl"), rows)
    assert refused(LABELLED, eval=held).startswith("held.jsonl line 4: the example has 318 tokens")
    assert "line 1: the example has" in refused(length=256)


def test_an_encoder_without_a_mask():
    said = refused(family="bert", kind=TemplateError, method="p-tuning-v2")
    assert "has no mask token, so it cannot choose a word; learn with --head linear" in said


def test_unknown_names():
    assert refused(method="magic").startswith("unknown method 'magic'; choose p-tuning-v2")
    assert refused(init="magic").startswith("--init magic is nothing to start from; choose auto, random")
    assert refused(init="text") == "--init text has no text to start from; give it with --init-text."
    assert "--init-text is for --init text" in refused(init="vocab", init_text="hello")
    assert "has no tokens" in refused(init="text", init_text="")
    assert "--init labels needs labels to choose from" in refused(init="labels", template="{text}={target:label}")


@pytest.mark.parametrize("flag", ["length", "lr", "max_steps", "init"])
def test_flags_that_a_method_would_ignore(flag):
    rest = {"length": None, "lr": None, "max_steps": None, "init": "auto"}
    given = {"length": 4, "lr": 0.1, "max_steps": 3, "init": "random"}
    said = refused(method="manual", **{**rest, flag: given[flag]})
    assert said == f"--method manual learns nothing, so --{flag.replace('_', '-')} would be ignored; leave it out."


def test_an_unknown_tracker():
    assert refused(report_to="magic").startswith("--report-to magic is no tracker; choose none, tensorboard, wandb")


def test_a_tracker_without_its_package(monkeypatch):
    monkeypatch.setattr("foreword.training.tracker.find_spec", lambda package: None)
    assert refused(report_to="wandb") == "--report-to wandb needs a package; run `pip install wandb`."


def test_a_run_folder_that_cannot_be_written():
    Path("file").touch()
    with pytest.raises(TrainingError, match=r"the run folder file/run cannot be written: Not a directory; use anoth"):
        train(tiny_model("llama"), recipe(Path(), out="file/run"))


def test_a_learning_rate_that_explodes():
    """Not even then is a checkpoint lost, nor a task made of what is no number."""
    settings = recipe(Path(), lr=1e38, max_steps=10, data=write_jsonl(Path("rows.jsonl"), examples(20, 3)))
    with pytest.raises(TrainingError, match="the loss is no longer a number; start again with a smaller --lr"):
        train(tiny_model("llama"), settings)
