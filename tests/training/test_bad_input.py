"""Everything wrong that a person can give: one sentence with the place and the mend, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword.errors import (
    DataError,
    ForewordError,
    ModelMismatch,
    PromptTooLong,
    TemplateError,
    TrainingError,
    UnsupportedModel,
    UsageError,
    VerbalizerError,
)
from foreword.prompts.lower import lower_tokens
from foreword.training.train import train
from models import tiny_model
from training.small_data import examples, recipe, write_jsonl

LABELLED = [{"text": "xa", "label": "y"}, {"text": "xb", "label": "n"}, {"text": "za", "label": "y"}]


def refused(folder: Path, rows: list | str | None = None, family: str = "llama", transfer=None, **changes) -> str:
    """The sentence; the run folder must not have been made."""
    if isinstance(rows, str):
        (folder / "bad.jsonl").write_text(rows, encoding="utf-8")
        changes |= {"data": str(folder / "bad.jsonl")}
    elif rows is not None:
        changes |= {"data": write_jsonl(folder / "bad.jsonl", rows)}
    with pytest.raises(ForewordError) as caught:
        train(tiny_model(family), recipe(folder, **changes), transfer=transfer)
    assert not (folder / "run").exists()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))
    refused.kind = caught.type
    return sentence.replace(f"{folder}/", "")


def test_missing_field(tmp_path):
    said = refused(tmp_path, [*LABELLED, {"txt": "xa", "label": "y"}])
    assert said.startswith("bad.jsonl line 4: the row has no field 'text' (it has: label, txt); add it to the row")
    assert refused.kind is TemplateError


def test_missing_label(tmp_path):
    said = refused(tmp_path, [*LABELLED, {"text": "xa"}])
    assert said == "bad.jsonl line 4: the row has no field 'label' (it has: text); pass --label-field."
    assert refused.kind is DataError


def test_missing_target(tmp_path):
    said = refused(tmp_path, LABELLED, template="{text}={target:answer}")
    assert said.startswith("bad.jsonl line 1: the row has no field 'answer'")


@pytest.mark.parametrize("value", [None, ["y"], {"is": "y"}])
def test_a_label_that_is_no_text(value, tmp_path):
    assert "line 4: label" in refused(tmp_path, [*LABELLED, {"text": "xa", "label": value}])


def test_empty_files(tmp_path):
    assert refused(tmp_path, "") == "bad.jsonl has no examples; give at least one line of data."
    assert refused(tmp_path, "\n \n") == "bad.jsonl has no examples; give at least one line of data."
    assert refused(tmp_path, LABELLED[:1], eval=None).startswith("the verbalizer") or refused.kind is VerbalizerError
    said = refused(tmp_path, LABELLED[:1], eval=None, verbalizer={"y": " y", "n": " n"})
    assert said == "bad.jsonl has one example; give at least two, or --eval."


def test_a_missing_file(tmp_path):
    assert (
        refused(tmp_path, data="nothing.jsonl")
        == "nothing.jsonl cannot be read: No such file or directory; check the path."
    )
    assert refused(tmp_path, eval="nothing.csv").startswith("nothing.csv cannot be read")
    assert refused(tmp_path, data="rows.txt") == "rows.txt has to end in .jsonl or .csv; convert it to one of them."


def test_broken_lines(tmp_path):
    assert refused(tmp_path, '{"text": "xa", "label": "y"}\n{"text": ').startswith("bad.jsonl line 2 is not JSON (")
    assert refused(tmp_path, '"text"\n').startswith("bad.jsonl line 1 is str, expected an object such as")
    said = refused(tmp_path, '{"text": "\\ud800", "label": "y"}\n{"text": "xa", "label": "n"}\n')
    assert said.startswith("bad.jsonl line 1: the text has half of a surrogate pair")


def test_a_label_outside_the_verbalizer(tmp_path):
    rows = [*LABELLED, {"text": "xa", "label": "maybe"}]
    said = refused(tmp_path, rows, verbalizer={"y": " y", "n": " n"})
    assert said.startswith("bad.jsonl line 4: label 'maybe' is not in the verbalizer (labels: y, n)")
    assert refused.kind is VerbalizerError
    held = write_jsonl(tmp_path / "held.jsonl", rows)
    said = refused(tmp_path, LABELLED, eval=held, verbalizer={"y": " y", "n": " n"})
    assert said.startswith("held.jsonl line 4: label 'maybe'")


def test_one_label_is_no_choice(tmp_path):
    held = write_jsonl(tmp_path / "held.jsonl", LABELLED[:1])
    assert "at least 2 labels" in refused(tmp_path, LABELLED[:1], eval=held)


def test_templates_without_an_answer(tmp_path):
    said = refused(tmp_path, template="{text}")
    assert "has no place for the answer; add {mask}" in said
    assert refused.kind is TemplateError
    assert "contradicts the template's own answer" in refused(tmp_path, template="{text}{mask}", target_field="label")
    assert "a verbalizer needs a template with {mask}" in refused(
        tmp_path, template="{text}{target:label}", verbalizer={"y": "y", "n": "n"}
    )


def test_a_template_that_cannot_be_guessed(tmp_path):
    rows = [{"premise": "a", "text": "b", "label": "y"}]
    said = refused(tmp_path, rows, template=None)
    assert said.startswith("bad.jsonl line 1: the row has 2 text fields (premise, text), so the template cannot be")


def test_a_prefix_of_another_model(tmp_path):
    other = lower_tokens(tiny_model("gpt2"), range(50, 66))
    said = refused(tmp_path, init="task:theirs", length=None, transfer=other)
    assert said.startswith("the task to start from, 'theirs', was made for another model: architecture is GPT2LMHead")
    assert refused.kind is ModelMismatch


def test_transfer_of_another_length(tmp_path):
    prefix = lower_tokens(tiny_model("llama"), range(50, 55))
    assert "has 5 virtual tokens, --length is 16" in refused(tmp_path, init="task:x", transfer=prefix)
    said = refused(tmp_path, init="task:x", length=None, transfer=prefix, method="prompt-tuning")
    assert "prompt-tuning cannot start from another task's keys and values" in said


def test_longer_than_the_context(tmp_path):
    rows = [*LABELLED, {"text": "x" * 300, "label": "y"}]
    said = refused(tmp_path, rows)
    assert said.startswith("bad.jsonl line 4: the example has 318 tokens with its answer and 16 virtual tokens, the")
    held = write_jsonl(tmp_path / "held.jsonl", rows)
    assert refused(tmp_path, LABELLED, eval=held).startswith("held.jsonl line 4: the example has 318 tokens")
    assert "line 1: the example has" in refused(tmp_path, length=256)


def test_unsupported_model(tmp_path):
    assert "BertForMaskedLM is an encoder" in refused(tmp_path, family="bert")
    assert refused.kind is UnsupportedModel


def test_unknown_names(tmp_path):
    assert refused(tmp_path, method="magic").startswith("unknown method 'magic'; choose p-tuning-v2")
    assert refused(tmp_path, init="magic").startswith("--init magic has nothing to start from; choose auto, random")
    assert refused(tmp_path, init="text") == "--init text has nothing to start from; give it with --init-text."
    assert "--init-text is for --init text" in refused(tmp_path, init="vocab", init_text="hello")
    assert "has no tokens" in refused(tmp_path, init="text", init_text="")
    assert "--init labels needs a template with {mask}" in refused(
        tmp_path, init="labels", template="{text}={target:label}"
    )


@pytest.mark.parametrize("flag", ["length", "lr", "max_steps", "init"])
def test_flags_that_a_method_would_ignore(flag, tmp_path):
    rest = {"length": None, "lr": None, "max_steps": None, "init": "auto"}
    given = {"length": 4, "lr": 0.1, "max_steps": 3, "init": "random"}
    said = refused(tmp_path, method="manual", **{**rest, flag: given[flag]})
    assert said == f"--method manual learns nothing, so --{flag.replace('_', '-')} would be ignored; leave it out."


def test_an_unknown_tracker(tmp_path):
    with pytest.raises(UsageError, match="--report-to magic cannot be used: "):
        train(tiny_model("llama"), recipe(tmp_path, report_to="magic", max_steps=1))


def test_a_run_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        TrainingError, match=r"the run folder .*/file/run cannot be written: Not a directory; use anoth"
    ):
        train(tiny_model("llama"), recipe(tmp_path, out=str(tmp_path / "file" / "run")))


def test_a_learning_rate_that_explodes(tmp_path):
    """Not even then is a checkpoint lost, nor a task made of what is no number."""
    settings = recipe(tmp_path, lr=1e38, max_steps=10, data=write_jsonl(tmp_path / "rows.jsonl", examples(20, 3)))
    with pytest.raises(TrainingError, match="the loss is no longer a number; start again with a smaller --lr"):
        train(tiny_model("llama"), settings)
