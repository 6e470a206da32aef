"""Whole runs on a tiny random model: they learn, repeat, resume, keep the best, and say so on stderr."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from foreword.core import KVPrefix, Task
from foreword.engine.engine import Engine
from foreword.errors import TrainingError
from foreword.evaluation.evaluate import evaluate
from foreword.models import LanguageModel
from foreword.prompts.base import PromptEncoder
from foreword.prompts.lower import lower, lower_tokens
from foreword.text.rows import data_digest, read_rows
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.trainer import PrefixTrainer, training_arguments
from foreword.training.recipe import Recipe
from foreword.training.run import Run
from foreword.training.train import train
from tiny_models import tiny_model
from training.small_data import ANSWERS, examples, recipe, write_csv, write_jsonl

LEARNED = ("p-tuning-v2", "prompt-tuning")


def same(a: KVPrefix, b: KVPrefix) -> bool:
    """Bit for bit."""
    return all(torch.equal(x, y) for x, y in zip((*a.keys, *a.values), (*b.keys, *b.values), strict=True))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"method": "prompt-tuning", "init": "auto", "length": 6, "verbalizer": {"y": " pro", "n": " con"}}),
        ("qwen3", {"method": "prompt-tuning"}),
        ("gemma3", {}),
    ],
    ids=["p-tuning-v2-llama", "prompt-tuning-llama", "prompt-tuning-qwen3", "p-tuning-v2-gemma3"],
)
def test_learns_labels_and_serves_what_it_learned(family, changes, tmp_path):
    lm = tiny_model(family)
    settings = recipe(tmp_path, **changes)
    result = train(lm, settings, name="rule")
    assert result.before["accuracy"] < 0.8
    assert result.metrics["accuracy"] > 0.95
    assert result.n == 24
    with Engine(lm) as engine:
        served = evaluate(engine, result.task, read_rows(settings.eval))
    assert served.metrics == result.metrics
    assert result.task.prefix.length == settings.length
    provenance = result.task.provenance
    assert provenance["metrics"] == result.metrics
    assert provenance["data_sha256"] == data_digest(settings.data)
    assert json.loads(json.dumps(provenance)) == provenance
    summary = json.loads((result.folder / "summary.json").read_text())
    layers = sum(shape.kv_heads * (shape.key_dim + shape.value_dim) for shape in lm.identity.layers)
    each = layers if settings.method == "p-tuning-v2" else lm.identity.hidden_size
    assert summary["trained_parameters"] == settings.length * each


def test_words_that_share_their_first_tokens(tmp_path):
    """Only the whole words differ: `` gold`` and `` goat`` begin alike."""
    answers = {"a": "goat", "b": "gold"}
    changes = {
        "data": write_jsonl(tmp_path / "shared.jsonl", examples(48, 1, answers)),
        "eval": write_jsonl(tmp_path / "held.jsonl", examples(24, 2, answers)),
    }
    assert train(tiny_model("llama"), recipe(tmp_path, **changes)).metrics["accuracy"] > 0.95


def test_several_words_a_label(tmp_path):
    words = {"y": [" yes", " fine"], "n": [" no"]}
    result = train(tiny_model("llama"), recipe(tmp_path, verbalizer=words))
    assert result.metrics["accuracy"] > 0.9
    assert result.task.verbalizer == {"y": (" yes", " fine"), "n": (" no",)}


@pytest.mark.parametrize("method", LEARNED)
def test_learns_to_write_answers(method, tmp_path):
    answers = {"a": "yes", "b": "no"}
    settings = recipe(
        tmp_path,
        method=method,
        template="{text}{target:label}",
        data=write_jsonl(tmp_path / "words.jsonl", examples(48, 1, answers)),
        eval=write_jsonl(tmp_path / "held.jsonl", examples(24, 2, answers)),
        lr=0.3,
        max_steps=100,
    )
    result = train(tiny_model("llama"), settings)
    assert result.before["exact_match"] == 0.0
    assert result.metrics["exact_match"] > 0.8
    assert result.task.verbalizer is None
    assert result.task.generation == {"max_tokens": 16}


def test_target_field_completes_the_template(tmp_path):
    result = train(tiny_model("llama"), recipe(tmp_path, template="{text}=", target_field="label", max_steps=1))
    assert result.task.template == "{text}={target:label}"
    result = train(
        tiny_model("llama"), recipe(tmp_path, template=None, target_field="label", max_steps=1, out=str(tmp_path / "b"))
    )
    assert result.task.template == "{text}\nAnswer:{target:label}"


def test_manual_learns_nothing_and_is_still_measured(tmp_path):
    settings = replace(recipe(tmp_path, method="manual", init="auto"), length=None, lr=None, max_steps=None)
    result = train(tiny_model("llama"), settings)
    assert result.metrics == result.before
    assert (result.trained_parameters, result.task.prefix.length) == (0, 0)


def test_without_eval_a_tenth_is_held_out(tmp_path):
    result = train(tiny_model("llama"), recipe(tmp_path, eval=None, max_steps=2))
    assert result.n == 4


def test_jsonl_and_csv_learn_the_same(tmp_path):
    rows = examples(48, 1)
    first = train(tiny_model("llama"), recipe(tmp_path, max_steps=3))
    again = recipe(tmp_path, max_steps=3, data=write_csv(tmp_path / "train.csv", rows), out=str(tmp_path / "csv"))
    assert same(first.task.prefix, train(tiny_model("llama"), again).task.prefix)


@pytest.mark.parametrize("method", LEARNED)
def test_a_seed_repeats_bit_for_bit_and_another_does_not(method, tmp_path):
    def learned(seed: int, out: str) -> KVPrefix:
        settings = recipe(tmp_path, method=method, seed=seed, max_steps=4, out=str(tmp_path / out))
        return train(tiny_model("llama"), settings).task.prefix

    assert same(learned(7, "a"), learned(7, "b"))
    assert not same(learned(7, "c"), learned(8, "d"))


def test_everything_a_person_reads_goes_to_stderr(tmp_path, capfd):
    train(tiny_model("llama"), recipe(tmp_path, max_steps=5))
    said = capfd.readouterr()
    assert said.out == ""
    assert "without a prefix: accuracy" in said.err
    assert "step 5/5  loss" in said.err
    assert "eval_accuracy" in said.err
    assert "with 16 virtual tokens (p-tuning-v2): accuracy" in said.err


class Snapshots(TrainerCallback):
    """What a run killed right after each of its checkpoints would leave behind."""

    def __init__(self, run: Path, kept: Path) -> None:
        self.run, self.kept = run, kept

    def on_save(self, args, state, control, **_) -> None:
        shutil.copytree(self.run, self.kept / str(state.global_step))


def whole_run(lm: LanguageModel, settings: Recipe, kept: Path) -> PromptEncoder:
    """An uninterrupted run, with `Snapshots` of it in ``kept``."""
    run = Run.from_recipe(lm, settings)
    run_dir, prompt = RunDir.open(settings.out or "", run.settings(), resume=False), run.initial_prompt()
    with Engine(lm, cache_bytes=1 << 20) as engine:
        evaluator = TaskEvaluator(run, engine, run.task("run"), prompt)
        PrefixTrainer(run, prompt, evaluator, run_dir, Snapshots(run_dir.path, kept)).train()
    return prompt.encoder


@pytest.mark.parametrize("method", LEARNED)
def test_resuming_from_any_checkpoint_gives_the_uninterrupted_result(method, tmp_path):
    lm = tiny_model("llama")
    settings = recipe(tmp_path, method=method, max_steps=12)
    whole = lower(lm, whole_run(lm, settings, tmp_path / "kept"))
    steps = sorted(int(path.name) for path in (tmp_path / "kept").iterdir())
    assert steps == [3, 6, 9, 12]
    for step in steps:
        # The folder goes by another name than when it was started, as after a move.
        resumed = train(lm, replace(settings, out=str(tmp_path / "kept" / str(step)), resume=True))
        assert same(resumed.task.prefix, whole), f"resumed from step {step}"


def test_the_best_checkpoint_is_kept_not_the_last(tmp_path):
    """The held-out labels are the wrong way round, so every step of learning makes the figures worse."""
    lm = tiny_model("llama")
    wrong = {"a": ANSWERS["b"], "b": ANSWERS["a"]}
    held = write_jsonl(tmp_path / "wrong.jsonl", examples(24, 2, wrong))
    settings = recipe(tmp_path, eval=held)
    result = train(lm, settings)
    checkpoints = result.folder / "checkpoints"
    state = json.loads((checkpoints / "checkpoint-40" / "trainer_state.json").read_text())
    scores = {entry["step"]: entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry}
    assert state["best_global_step"] < 40
    assert sorted(scores) == [8, 16, 24, 32, 40]
    assert result.metrics["accuracy"] == max(scores.values()) > scores[40]
    best = load_file(checkpoints / f"checkpoint-{state['best_global_step']}" / "model.safetensors")
    prompt = Run.from_recipe(lm, settings).initial_prompt()
    prompt.load_state_dict({name.removeprefix("learned."): tensor for name, tensor in best.items()})
    assert same(result.task.prefix, lower(lm, prompt.encoder))
    resumed = train(lm, replace(settings, resume=True))
    assert same(resumed.task.prefix, result.task.prefix)


def test_a_moved_run_still_ends_with_its_best_values(tmp_path):
    lm = tiny_model("llama")
    wrong = {"a": ANSWERS["b"], "b": ANSWERS["a"]}
    settings = recipe(tmp_path, eval=write_jsonl(tmp_path / "wrong.jsonl", examples(24, 2, wrong)))
    whole = lower(lm, whole_run(lm, settings, tmp_path / "kept"))
    shutil.rmtree(settings.out)
    resumed = train(lm, replace(settings, out=str(tmp_path / "kept" / "32"), resume=True))
    assert same(resumed.task.prefix, whole)


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    lm = tiny_model("llama")
    settings = recipe(tmp_path, max_steps=10)
    whole = train(lm, settings).task.prefix
    checkpoints = Path(settings.out) / "checkpoints"
    (checkpoints / "checkpoint-10" / "trainer_state.json").write_text('{"best_glo')
    (checkpoints / "checkpoint-12").mkdir()
    assert same(train(lm, replace(settings, resume=True)).task.prefix, whole)


def test_killed_and_resumed(tmp_path):
    """A real kill -9 of a real process, somewhere behind its second checkpoint."""
    settings = recipe(tmp_path, max_steps=60)
    code = f"""
from foreword.training.recipe import Recipe
from foreword.training.train import train
from tiny_models import tiny_model
train(tiny_model("llama"), Recipe(**{settings.to_json()!r}, out={settings.out!r}))
"""
    tests = Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tests, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (Path(settings.out) / "checkpoints" / "checkpoint-24").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    lm = tiny_model("llama")
    resumed = train(lm, replace(settings, resume=True))
    assert same(resumed.task.prefix, train(lm, replace(settings, out=str(tmp_path / "whole"))).task.prefix)


def test_a_run_folder_is_not_used_twice_by_mistake(tmp_path):
    lm = tiny_model("llama")
    settings = recipe(tmp_path, max_steps=2)
    train(lm, settings)
    with pytest.raises(TrainingError, match="holds a run already; pass --resume to go on with it, or another --out"):
        train(lm, settings)
    with pytest.raises(TrainingError, match=r"was started with another lr \(0.1, now 0.01\)"):
        train(lm, replace(settings, lr=0.01, resume=True))
    with pytest.raises(TrainingError, match="was started with another model"):
        train(tiny_model("gpt2"), replace(settings, resume=True))
    Path(settings.data).write_text(json.dumps({"text": "a", "label": "y"}) + "\n")
    with pytest.raises(TrainingError, match="was started with another data"):
        train(lm, replace(settings, resume=True, verbalizer={"n": " n", "y": " y"}))
    with pytest.raises(TrainingError, match="holds no run to resume; leave out --resume"):
        train(lm, replace(settings, out=str(tmp_path / "new"), resume=True))


def test_data_may_move_before_a_run_is_resumed(tmp_path):
    lm = tiny_model("llama")
    settings = recipe(tmp_path, max_steps=2)
    prefix = train(lm, settings).task.prefix
    moved = Path(settings.data).rename(tmp_path / "moved.jsonl")
    assert same(train(lm, replace(settings, data=str(moved), resume=True)).task.prefix, prefix)


def test_transfer_starts_from_the_other_task(tmp_path):
    lm = tiny_model("llama")
    source = lower_tokens(lm, lm.tokenizer("a ybb n").input_ids)
    settings = replace(recipe(tmp_path, init="task:other", max_steps=1, lr=1e-12), length=None)
    result = train(lm, settings, transfer=Task("other", "static", source))
    for found, expected in zip(result.task.prefix.keys, source.keys, strict=True):
        torch.testing.assert_close(found, expected)
    assert result.task.prefix.bos == source.bos
    assert result.task.provenance["parents"] == ["other"]


def test_the_model_itself_does_not_change(tmp_path):
    lm = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    train(lm, recipe(tmp_path, max_steps=3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in lm.model.parameters())


def test_a_run_reuses_the_examples_of_another_on_the_same_rows(tmp_path):
    lm, settings = tiny_model("llama"), recipe(tmp_path)
    first = Run.from_recipe(lm, settings)
    for changes, same_tokens in (({"lr": 0.2, "length": 8}, True), ({"template": "Say {text}{mask}"}, False)):
        other = Run.from_recipe(lm, replace(settings, **changes), like=first)
        assert (other.examples is first.examples) == same_tokens
        assert other.steps == first.steps


def test_report_to_passes_through(tmp_path, monkeypatch):
    """As far as the Trainer, which then asks for the tracker's own package."""
    monkeypatch.setattr("foreword.training.tracker.find_spec", lambda package: package == "tensorboard")
    run = Run.from_recipe(tiny_model("llama"), recipe(tmp_path, report_to="tensorboard"))
    assert training_arguments(run, tmp_path).report_to == ["tensorboard"]
