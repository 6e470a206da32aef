"""Whole searches: every trial learns what a run of its own learns, losers are dropped, and a killed search resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foreword.errors import SettingError, TrainingError, UsageError
from foreword.training.recipe import Recipe
from foreword.training.search.config import SearchConfig
from foreword.training.search.search import SearchResult, search
from foreword.training.search.trial_scheduler import TrialScheduler
from foreword.training.train import TrainResult, train
from tiny_models import tiny_model
from training.small_data import recipe, write_jsonl

SPACE = {"lr": [0.003, 0.1], "length": [2, 8], "init": ["random", "auto"]}


def quiet(line: str) -> None:
    del line


def run_search(settings: Recipe, config: SearchConfig, family: str = "llama") -> SearchResult:
    return search(tiny_model(family), settings, config, say=quiet)


def train_alone(settings: Recipe, family: str = "llama") -> TrainResult:
    """`train` with the settings of one trial of a search."""
    return train(tiny_model(family), replace(settings, out=f"{settings.out}-alone"), say=quiet)


def assert_same(result: SearchResult, single: TrainResult) -> None:
    ours, theirs = result.task.prefix, single.task.prefix
    for one, other in zip((*ours.keys, *ours.values), (*theirs.keys, *theirs.values), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert result.metrics == pytest.approx(single.metrics, abs=1e-6)
    assert (result.before, result.n, result.trained_parameters) == (single.before, single.n, single.trained_parameters)
    assert (result.task.template, result.task.verbalizer) == (single.task.template, single.task.verbalizer)


@pytest.mark.parametrize("eta", [None, 2])
def test_the_winner_is_what_train_gives_with_its_settings(eta, tmp_path):
    settings = recipe(tmp_path, max_steps=10)
    result = run_search(settings, SearchConfig.of(SPACE, halving=eta))
    assert result.recipe == replace(settings, **result.winner.params)
    assert_same(result, train_alone(result.recipe))
    assert result.task.provenance["recipe"] == result.recipe.to_json()
    assert len(result.trials) == 8
    assert result.trials[0] is result.winner
    assert result.winner.state == "complete"
    states = [trial.state for trial in result.trials]
    assert states == ["complete"] * 8 if eta is None else {"complete", "dropped"} == set(states)
    written = [json.loads(line) for line in (result.folder / "trials.jsonl").read_text().splitlines()]
    assert sorted(trial["number"] for trial in written) == list(range(8))
    assert (result.folder / "trials.png").stat().st_size > 10_000
    assert (result.folder / "curves.png").is_file()


def test_every_trial_learns_what_a_run_of_its_own_learns(tmp_path):
    """Of different lengths, starts, rates, batches and seeds, beside each other in one batch."""
    settings = recipe(tmp_path, max_steps=10)
    space = {"lr": [0.01, 0.1], "batch_size": [4, 16], "seed": [0, 7], "init": ["random"]}
    result = run_search(settings, SearchConfig.of(space, halving="off"))
    for trial in result.trials[:2]:
        single = train(
            tiny_model("llama"), replace(settings, **trial.params, out=str(tmp_path / f"{trial.number}")), say=quiet
        )
        log = json.loads((single.folder / "history.json").read_text())["log"]
        losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
        assert [figures["loss"] for figures in trial.evaluations] == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize("method", [pytest.param("p-tuning", marks=pytest.mark.slow), "lora-hybrid"])
def test_other_methods_are_searched_too(method, tmp_path):
    settings = recipe(tmp_path, method=method, max_steps=5, length=4, lr=None)
    result = run_search(settings, SearchConfig.of({"lr": [1e-3, 3e-3]}, halving=None))
    assert_same(result, train_alone(result.recipe))


def test_methods_compete_with_one_another(tmp_path):
    settings = recipe(tmp_path, max_steps=5, length=4, lr=None)
    result = run_search(
        settings, SearchConfig.of({"method": ["p-tuning-v2", "prompt-tuning", "prefix-tuning"]}, halving=None)
    )
    assert {trial.params["method"] for trial in result.trials} == {"p-tuning-v2", "prompt-tuning", "prefix-tuning"}
    assert_same(result, train_alone(result.recipe))


def test_new_trials_start_where_others_were_dropped(tmp_path, monkeypatch):
    most: list[int] = []
    save = TrialScheduler._save_state
    monkeypatch.setattr(
        TrialScheduler, "_save_state", lambda scheduler: most.append(len(scheduler._trainer.runs)) or save(scheduler)
    )
    result = run_search(recipe(tmp_path, max_steps=10), SearchConfig.of(SPACE, at_once=3, halving=2))
    assert max(most) == 3
    assert len(result.trials) == 8
    dropped = [trial for trial in result.trials if trial.state == "dropped"]
    assert dropped
    assert all(trial.step < trial.steps for trial in dropped)
    assert all(trial.step == trial.steps for trial in result.trials if trial.state == "complete")
    assert_same(result, train_alone(result.recipe))


@pytest.mark.parametrize(
    ("space", "trials", "saves"),
    [
        (SPACE, None, 3),
        ({"lr": {"low": 1e-3, "high": 0.3, "log": True}}, 6, 3),
        pytest.param(SPACE, None, 1, marks=pytest.mark.slow),
        pytest.param({"lr": {"low": 1e-3, "high": 0.3, "log": True}}, 6, 1, marks=pytest.mark.slow),
    ],
)
def test_a_killed_search_resumes_to_the_same_result(space, trials, saves, tmp_path, monkeypatch):
    if trials is not None:
        pytest.importorskip("optuna")
    config = SearchConfig.of(space, trials, at_once=4, halving=2)
    settings = recipe(tmp_path, max_steps=5)
    whole = run_search(settings, config)
    cut = replace(settings, out=str(tmp_path / "cut"))
    save, left = TrialScheduler._save_state, [saves]

    def killed(scheduler: TrialScheduler) -> None:
        save(scheduler)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TrialScheduler, "_save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            run_search(cut, config)
    resumed = run_search(replace(cut, resume=True), config)
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in whole.trials]
    for one, other in zip(resumed.trials, whole.trials, strict=True):
        assert (one.number, one.state, one.step) == (other.number, other.state, other.step)
        assert one.best_score == pytest.approx(other.best_score, abs=1e-5)
    for one, other in zip(resumed.task.prefix.keys, whole.task.prefix.keys, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    again = run_search(replace(cut, resume=True), config)
    assert again.metrics == resumed.metrics


def test_another_search_is_not_resumed(tmp_path):
    settings = recipe(tmp_path, max_steps=5)
    run_search(settings, SearchConfig.of({"lr": [0.1]}))
    with pytest.raises(TrainingError, match="holds a run already; pass --resume"):
        run_search(settings, SearchConfig.of({"lr": [0.1]}))
    with pytest.raises(TrainingError, match="was started with another search"):
        run_search(replace(settings, resume=True), SearchConfig.of({"lr": [0.2]}))
    (next(Path(settings.out or "").glob("lanes-*.safetensors"))).write_bytes(b"no tensors")
    with pytest.raises(TrainingError, match=r"lanes-\d+.safetensors is damaged, so the search cannot be resumed"):
        run_search(replace(settings, resume=True), SearchConfig.of({"lr": [0.1]}))


def test_a_failed_trial_leaves_the_others_alone(tmp_path):
    settings = recipe(tmp_path, max_steps=5)
    result = run_search(settings, SearchConfig.of({"lr": [0.1, 1e38]}, halving=None))
    assert [trial.state for trial in result.trials] == ["complete", "failed"]
    assert "start again with a smaller --lr" in result.trials[1].error
    assert_same(result, train_alone(result.recipe))
    with pytest.raises(TrainingError, match="no trial could be learned to its end; the loss "):
        run_search(replace(settings, out=str(tmp_path / "none")), SearchConfig.of({"lr": [1e38]}))


def test_savings_of_batching_and_halving_are_measured_apart(tmp_path):
    settings = recipe(tmp_path, max_steps=40, length=4)
    result = run_search(settings, SearchConfig.of({"lr": [0.001, 0.003, 0.01, 0.1]}, halving=2))
    spared = result.savings["halving"]
    assert spared["examples_run"] == sum(trial.step * 16 for trial in result.trials)
    assert spared["examples_run"] + spared["examples_not_run"] == 4 * 40 * 16
    assert spared["dropped"] == sum(trial.state == "dropped" for trial in result.trials) > 0
    four = result.savings["batching"][0]
    assert (four["trials"], four["pairs"]) == (4, 3)
    assert four["times_faster"] == pytest.approx(four["seconds_one_by_one"] / four["seconds_together"])
    assert_same(result, train_alone(result.recipe))


def test_errors_are_raised_before_anything_is_written(tmp_path):
    settings = recipe(tmp_path, freeze_first=True, init="auto")
    with pytest.raises(SettingError, match="freeze-first would freeze random values") as raised:
        run_search(settings, SearchConfig.of({"freeze_first": [False, True], "init": ["auto", "random"]}))
    assert raised.value.key == "search.freeze_first"
    long = write_jsonl(tmp_path / "long.jsonl", [{"text": "a" * 230, "label": "y"}, {"text": "b", "label": "n"}] * 4)
    with pytest.raises(UsageError, match=r"long.jsonl line 1: the example has 2\d\d tokens"):
        run_search(recipe(tmp_path, data=long), SearchConfig.of({"length": [4, 40]}))
    assert not (tmp_path / "run").exists()
