"""Whole distillations of a tiny text: they learn to imitate, repeat, resume, and answer where the text would."""

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
from foreword.text import request
from foreword.training.distillation.distill import distill
from foreword.training.distillation.document import Document
from foreword.training.distillation.self_study import QUESTIONS, generate_questions
from foreword.training.distillation.setup import DistillationSetup
from foreword.training.loop import trainer as trainer_module
from models import tiny_model
from training.distillation.small import TEXT, recipe, roomy
from training.small_data import write_jsonl


def same(a: KVPrefix, b: KVPrefix) -> bool:
    """Bit for bit."""
    return all(torch.equal(x, y) for x, y in zip((*a.keys, *a.values), (*b.keys, *b.values), strict=True))


def test_it_learns_to_imitate_and_says_what_it_stands_for(tmp_path):
    lm = roomy()
    said: list[str] = []
    made = distill(lm, TEXT, recipe(tmp_path, max_steps=30), kind="prompt", name="lamps", say=said.append)
    quality, task = made.quality, made.task
    before = float(next(line for line in said if "before they learn" in line).split(f"{made.init} ")[1].split(",")[0])
    assert quality.gap_closed > max(0.4, before + 0.1)
    assert quality.logprob["none"] < quality.logprob["distilled"] < quality.logprob["full"]
    assert quality.bytes_ratio == pytest.approx(len(TEXT) / 8)
    assert quality.bytes["distilled"] == task.prefix.nbytes
    assert (task.kind, task.method, task.text, task.prefix.length) == ("prompt", "distill", TEXT, 8)
    assert task.prefix.token_ids is None
    assert min(quality.decode.values()) > 0
    published = Bank(tmp_path / "bank").publish(task)
    card = next((tmp_path / "bank").glob("lamps/versions/*/README.md")).read_text()
    assert f"- distilled from: a text of {len(TEXT)} tokens, sha256 {task.provenance['text_sha256']}" in card
    assert f"- gap_closed: {quality.gap_closed:.4g}" in card
    assert Bank(tmp_path / "bank").verify() == []
    assert same(Bank(tmp_path / "bank").load(published.ref).prefix, task.prefix)
    summary = json.loads((made.folder / "summary.json").read_text())
    assert summary["gap_closed"] == quality.gap_closed
    assert summary["tokens"] == made.tokens > 30 * 4


def test_it_answers_where_the_static_task_would(tmp_path):
    """Behind the prefix stand the very tokens that stand behind the text, which is a system turn unless it is said."""
    lm = roomy()
    made = distill(lm, TEXT, recipe(tmp_path, max_steps=1))
    full = static_task(lm, "full", "system", TEXT)
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}]
    for messages in (turns[:1], [*turns, turns[0]]):
        static = request.from_messages(lm.tokenizer, full, messages)
        distilled = request.from_messages(lm.tokenizer, made.task, messages)
        assert static.prefix_length == full.prefix.length
        assert distilled.token_ids == static.token_ids
        assert distilled.prefix is made.task.prefix
    assert (
        request.from_text(lm.tokenizer, made.task, " and then").token_ids
        == request.from_text(lm.tokenizer, full, " and then").token_ids
    )


def test_the_same_seed_gives_the_same_prefix(tmp_path):
    settings = recipe(tmp_path, seed=7, max_steps=1)
    first, again = (
        distill(roomy(), TEXT, replace(settings, out=str(tmp_path / out)), kind="prompt").task.prefix for out in "ab"
    )
    assert same(first, again)


def test_parts_have_no_question_in_common(tmp_path):
    lm = roomy()
    plan = DistillationSetup(lm, Document.read(lm, "prompt", TEXT), recipe(tmp_path, conversations=30, held=10))
    with Engine(lm, cache_bytes=1 << 24) as engine:
        found = plan.study(engine)
        again = generate_questions(engine, plan.document, 10, 5, QUESTIONS)
        assert again == generate_questions(engine, plan.document, 10, 5, QUESTIONS)
    parts = [{each.question for each in part} for part in (found.learned, found.held, found.test)]
    assert all(len(part) > 4 for part in parts)
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert {each.seed for each in found.test} <= {"question", "use"} < {each.seed for each in found.learned}


class Snapshots(TrainerCallback):
    """What a run killed right after each of its checkpoints would leave behind."""

    def __init__(self, run: Path, kept: Path) -> None:
        self.run, self.kept = run, kept

    def on_save(self, args, state, control, **_) -> None:
        shutil.copytree(self.run, self.kept / str(state.global_step))


def test_resuming_gives_the_uninterrupted_result(tmp_path, monkeypatch):
    lm, settings = roomy(), recipe(tmp_path, max_steps=10)
    usual = trainer_module.PrefixTrainer

    def watched(*args):
        trainer = usual(*args)
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
    # Conversations and beliefs are read back, and never made again.
    half = tmp_path / "kept" / "6"
    shutil.rmtree(half / "slots-8")
    made = (half / "conversations.json").stat().st_mtime_ns
    again = distill(lm, TEXT, replace(settings, out=str(half), resume=True), kind="prompt")
    assert same(again.task.prefix, whole.prefix)
    assert (half / "conversations.json").stat().st_mtime_ns == made


def test_a_run_folder_is_not_mixed(tmp_path):
    settings = recipe(tmp_path, max_steps=1)
    distill(roomy(), TEXT, settings, kind="prompt")
    with pytest.raises(TrainingError, match="holds a run already; pass --resume"):
        distill(roomy(), TEXT, settings, kind="prompt")
    with pytest.raises(TrainingError, match="was started with another text"):
        distill(roomy(), TEXT + "!", replace(settings, resume=True), kind="prompt")
    (Path(str(settings.out)) / "beliefs.safetensors").write_bytes(b"short")
    with pytest.raises(TrainingError, match=r"beliefs.safetensors is damaged, so the run cannot be resumed"):
        distill(roomy(), TEXT, replace(settings, resume=True), kind="prompt")
    (Path(str(settings.out)) / "conversations.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"conversations.json is damaged, so the run cannot be resumed"):
        distill(roomy(), TEXT, replace(settings, resume=True), kind="prompt")


def test_questions_from_files(tmp_path):
    questions = write_jsonl(tmp_path / "questions.jsonl", [{"question": "What ships?"}, {"question": "When?"}])
    asked = write_jsonl(
        tmp_path / "eval.jsonl",
        [{"question": "What costs 9?", "answers": ["Lamp 3"]}, {"question": "How long?", "answers": "2 days"}],
    )
    settings = recipe(tmp_path, questions=questions, eval_questions=asked, max_steps=2)
    made = distill(roomy(), TEXT, settings, kind="prompt")
    assert made.quality.n == 2
    assert {"reference_none", "reference_full", "reference_distilled"} <= set(made.quality.f1)
    kept = json.loads((made.folder / "conversations.json").read_text())
    assert {each["question"] for each in kept["learned"]} == {"What ships?", "When?"}
    assert len(kept["learned"]) == settings.conversations
    assert [each["question"] for each in kept["test"]] == ["What costs 9?", "How long?"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": ""}, "line 1: field 'question' must be a text, found ''"),
        ({"text": "x"}, "line 1: field 'question' must be a text, found None"),
        ({"question": "x", "answers": [3]}, "line 1: field 'answers' must be a text or a list of texts"),
    ],
)
def test_questions_that_cannot_be_used(row, said, tmp_path):
    file = write_jsonl(tmp_path / "bad.jsonl", [row])
    with pytest.raises(DataError, match=said):
        distill(roomy(), TEXT, recipe(tmp_path, eval_questions=file), kind="prompt")


def test_a_text_longer_than_the_context(tmp_path):
    context = 1200
    lm = roomy(context=context)
    long = "\n\n".join(f"Rule {number}: {TEXT}" for number in range(20))
    made = distill(lm, long, recipe(tmp_path, max_steps=3, conversations=16, held=6), kind="system")
    assert made.quality.bytes["full"] > context * made.task.prefix.nbytes / 8
    assert made.quality.bytes_ratio > context / 8
    kept = json.loads((made.folder / "conversations.json").read_text())
    assert {each["chunk"] for each in kept["learned"]} == {0, 1, 2, 3}
    assert made.task.text == long


def test_a_curve_is_a_table_and_a_picture(tmp_path):
    made = distill(roomy(), TEXT, recipe(tmp_path, max_steps=2), kind="prompt", curve=(4, 8))
    assert [each.slots for each in made.curve] == [4, 8]
    assert made.quality == made.curve[1]
    assert made.task.prefix.length == 8
    assert (made.folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (made.folder / "curve.md").read_text().count("\n| ") == 2


def test_a_model_whose_keys_cannot_move_is_refused_at_once(tmp_path):
    with pytest.raises(UnsupportedModel, match="tiny-gpt2 has learned absolute positions, so keys cannot move"):
        distill(tiny_model("gpt2"), TEXT, recipe(tmp_path), kind="prompt")
    assert not (tmp_path / "run").exists()


def test_settings_that_mean_nothing(tmp_path):
    with pytest.raises(SettingError, match=r"the text has 62 tokens, so 80 slots would not be shorter"):
        distill(roomy(), TEXT, recipe(tmp_path, slots=80), kind="prompt")
    for changes, said in (
        ({"slots": 1}, "--slots must be at least 2"),
        ({"init": "random"}, "--init must be one of auto, attention, even, first"),
        ({"lr": 0.0}, "--lr must be above 0"),
        ({"accumulate": 9}, "--accumulate 9 is more than the 4 examples"),
        ({"resume": True, "out": None}, "--resume needs --out"),
    ):
        with pytest.raises(SettingError, match=said):
            recipe(tmp_path, **changes)
