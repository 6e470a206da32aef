"""Whole distillations of a tiny text: they close the gap, are deterministic, resume, and answer as the text would."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from foreword.bank.bank import Bank
from foreword.core import KVPrefix
from foreword.engine.engine import Engine
from foreword.errors import DataError, SettingError, TrainingError, UnsupportedModel
from foreword.prompts.static import static_task
from foreword.text import task_prompts
from foreword.training.distillation.distill import distill
from foreword.training.distillation.document import Document
from foreword.training.distillation.self_study import USER_QUESTION_TEMPLATES, generate_questions
from foreword.training.distillation.self_study_data import SelfStudyData
from foreword.training.loop import trainer as trainer_module
from tiny_models import tiny_model
from training.distillation.small_document import TEXT, chat_model, recipe
from training.small_data import write_jsonl


def same(a: KVPrefix, b: KVPrefix) -> bool:
    """Bit for bit."""
    return all(torch.equal(x, y) for x, y in zip((*a.keys, *a.values), (*b.keys, *b.values), strict=True))


def test_it_closes_the_gap_and_records_what_was_distilled(tmp_path):
    lm = chat_model()
    lines: list[str] = []
    result = distill(lm, TEXT, recipe(tmp_path, max_steps=30), kind="prompt", name="lamps", say=lines.append)
    report, task = result.report, result.task
    before = float(
        next(line for line in lines if "before they learn" in line).split(f"{result.init} ")[1].split(",")[0]
    )
    assert report.gap_closed > max(0.4, before + 0.1)
    assert report.logprob["none"] < report.logprob["distilled"] < report.logprob["full"]
    assert report.bytes_ratio == pytest.approx(len(TEXT) / 8)
    assert report.bytes["distilled"] == task.prefix.nbytes
    assert (task.kind, task.method, task.text, task.prefix.length) == ("prompt", "distill", TEXT, 8)
    assert task.prefix.token_ids is None
    assert min(report.decode.values()) > 0
    published = Bank(tmp_path / "bank").publish(task)
    card = next((tmp_path / "bank").glob("lamps/versions/*/README.md")).read_text()
    assert f"- distilled from: a text of {len(TEXT)} tokens, sha256 {task.provenance['text_sha256']}" in card
    assert f"- gap_closed: {report.gap_closed:.4g}" in card
    assert Bank(tmp_path / "bank").verify() == []
    assert same(Bank(tmp_path / "bank").load(published.ref).prefix, task.prefix)
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["gap_closed"] == report.gap_closed
    assert summary["tokens"] == result.tokens > 30 * 4


def test_it_answers_where_the_static_task_would(tmp_path):
    """Behind the prefix stand the very tokens that stand behind the text, which is a system turn unless it is said."""
    lm = chat_model()
    result = distill(lm, TEXT, recipe(tmp_path, max_steps=1))
    full = static_task(lm, "full", "system", TEXT)
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}]
    for messages in (turns[:1], [*turns, turns[0]]):
        static = task_prompts.from_messages(lm.tokenizer, full, messages)
        distilled = task_prompts.from_messages(lm.tokenizer, result.task, messages)
        assert static.prefix_length == full.prefix.length
        assert distilled.token_ids == static.token_ids
        assert distilled.prefix is result.task.prefix
    assert (
        task_prompts.from_text(lm.tokenizer, result.task, " and then").token_ids
        == task_prompts.from_text(lm.tokenizer, full, " and then").token_ids
    )


def test_the_same_seed_gives_the_same_prefix(tmp_path):
    settings = recipe(tmp_path, seed=7, max_steps=1)
    first, again = (
        distill(chat_model(), TEXT, replace(settings, out=str(tmp_path / out)), kind="prompt").task.prefix
        for out in "ab"
    )
    assert same(first, again)


def test_splits_have_no_question_in_common(tmp_path):
    lm = chat_model()
    document = Document.prefill(lm, "prompt", TEXT)
    with Engine(lm, cache_bytes=1 << 24) as engine:
        data = SelfStudyData.generate(engine, document, recipe(tmp_path, conversations=30, held=10))
        questions = generate_questions(engine, document, 10, 5, USER_QUESTION_TEMPLATES)
        assert questions == generate_questions(engine, document, 10, 5, USER_QUESTION_TEMPLATES)
    splits = [{each.question for each in split} for split in (data.train, data.validation, data.test)]
    assert all(len(split) > 4 for split in splits)
    assert len(set.union(*splits)) == sum(map(len, splits))
    assert {each.template for each in data.test} <= {"question", "use"} < {each.template for each in data.train}


class Snapshots(TrainerCallback):
    """What a run killed right after each of its checkpoints would leave behind."""

    def __init__(self, run: Path, kept: Path) -> None:
        self.run, self.kept = run, kept

    def on_save(self, args, state, control, **_) -> None:
        shutil.copytree(self.run, self.kept / str(state.global_step))


def test_resuming_gives_the_uninterrupted_result(tmp_path, monkeypatch):
    lm, settings = chat_model(), recipe(tmp_path, max_steps=10)
    trainer_class = trainer_module.PrefixTrainer

    def watched(*args):
        trainer = trainer_class(*args)
        trainer.add_callback(Snapshots(Path(str(settings.out)), tmp_path / "kept"))
        return trainer

    monkeypatch.setattr(trainer_module, "PrefixTrainer", watched)
    whole = distill(lm, TEXT, settings, kind="prompt").task
    monkeypatch.undo()
    assert sorted(int(path.name) for path in (tmp_path / "kept").iterdir()) == [2, 4, 6, 8, 10]
    for step in (4, 10):
        resumed = distill(
            lm, TEXT, replace(settings, out=str(tmp_path / "kept" / str(step)), resume=True), kind="prompt"
        )
        assert same(resumed.task.prefix, whole.prefix), f"resumed from step {step}"
    # Conversations and teacher logits are read back, and never result again.
    half = tmp_path / "kept" / "6"
    shutil.rmtree(half / "slots-8")
    result = (half / "conversations.json").stat().st_mtime_ns
    again = distill(lm, TEXT, replace(settings, out=str(half), resume=True), kind="prompt")
    assert same(again.task.prefix, whole.prefix)
    assert (half / "conversations.json").stat().st_mtime_ns == result


def test_a_run_folder_is_not_mixed(tmp_path):
    settings = recipe(tmp_path, max_steps=1)
    distill(chat_model(), TEXT, settings, kind="prompt")
    with pytest.raises(TrainingError, match="holds a run already; pass --resume"):
        distill(chat_model(), TEXT, settings, kind="prompt")
    with pytest.raises(TrainingError, match="was started with another text"):
        distill(chat_model(), TEXT + "!", replace(settings, resume=True), kind="prompt")
    (Path(str(settings.out)) / "beliefs.safetensors").write_bytes(b"short")
    with pytest.raises(TrainingError, match=r"beliefs.safetensors is damaged, so the run cannot be resumed"):
        distill(chat_model(), TEXT, replace(settings, resume=True), kind="prompt")
    (Path(str(settings.out)) / "conversations.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"conversations.json is damaged, so the run cannot be resumed"):
        distill(chat_model(), TEXT, replace(settings, resume=True), kind="prompt")


def test_questions_from_files(tmp_path):
    questions = write_jsonl(tmp_path / "questions.jsonl", [{"question": "What ships?"}, {"question": "When?"}])
    asked = write_jsonl(
        tmp_path / "eval.jsonl",
        [{"question": "What costs 9?", "answers": ["Lamp 3"]}, {"question": "How long?", "answers": "2 days"}],
    )
    settings = recipe(tmp_path, questions=questions, eval_questions=asked, max_steps=2)
    result = distill(chat_model(), TEXT, settings, kind="prompt")
    assert result.report.n == 2
    assert {"reference_none", "reference_full", "reference_distilled"} <= set(result.report.f1)
    kept = json.loads((result.folder / "conversations.json").read_text())
    assert {each["question"] for each in kept["learned"]} == {"What ships?", "When?"}
    assert len(kept["learned"]) == settings.conversations
    assert [each["question"] for each in kept["test"]] == ["What costs 9?", "How long?"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": ""}, "line 1: field 'question' must be a text, found ''"),
        ({"text": "x"}, "line 1: field 'question' must be a text, found None"),
        ({"question": "x", "answers": [3]}, "line 1: field 'answers' must be a text or a list of texts"),
    ],
)
def test_questions_that_cannot_be_used(row, message, tmp_path):
    file = write_jsonl(tmp_path / "bad.jsonl", [row])
    with pytest.raises(DataError, match=message):
        distill(chat_model(), TEXT, recipe(tmp_path, eval_questions=file), kind="prompt")


def test_a_text_longer_than_the_context(tmp_path):
    context = 1200
    lm = chat_model(context=context)
    long = "\n\n".join(f"Rule {number}: {TEXT}" for number in range(20))
    result = distill(lm, long, recipe(tmp_path, max_steps=3, conversations=16, held=6), kind="system")
    assert result.report.bytes["full"] > context * result.task.prefix.nbytes / 8
    assert result.report.bytes_ratio > context / 8
    kept = json.loads((result.folder / "conversations.json").read_text())
    assert {each["chunk"] for each in kept["learned"]} == {0, 1, 2, 3}
    assert result.task.text == long


def test_a_curve_is_a_table_and_a_picture(tmp_path):
    result = distill(chat_model(), TEXT, recipe(tmp_path, max_steps=2), kind="prompt", curve=(4, 8))
    assert [each.slots for each in result.curve] == [4, 8]
    assert result.report == result.curve[1]
    assert result.task.prefix.length == 8
    assert (result.folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (result.folder / "curve.md").read_text().count("\n| ") == 2


def test_a_model_whose_keys_cannot_move_is_refused_at_once(tmp_path):
    with pytest.raises(UnsupportedModel, match="tiny-gpt2 has learned absolute positions, so keys cannot move"):
        distill(tiny_model("gpt2"), TEXT, recipe(tmp_path), kind="prompt")
    assert not (tmp_path / "run").exists()


def test_settings_that_mean_nothing(tmp_path):
    with pytest.raises(SettingError, match=r"the text has 62 tokens, so 80 slots would not be shorter"):
        distill(chat_model(), TEXT, recipe(tmp_path, slots=80), kind="prompt")
    for changes, message in (
        ({"slots": 1}, "--slots must be at least 2"),
        ({"init": "random"}, "--init must be one of auto, attention, even, first"),
        ({"lr": 0.0}, "--lr must be above 0"),
        ({"accumulate": 9}, "--accumulate 9 is more than the 4 examples"),
        ({"resume": True, "out": None}, "--resume needs --out"),
    ):
        with pytest.raises(SettingError, match=message):
            recipe(tmp_path, **changes)
