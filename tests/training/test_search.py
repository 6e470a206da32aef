"""A search: its trials learn what separate runs learn, losers make room, and a search that was killed goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foreword.errors import SettingError, TrainingError, UsageError
from foreword.training.recipe import Recipe
from foreword.training.search.batching_stats import halving
from foreword.training.search.config import SearchConfig
from foreword.training.search.samplers import TPESampler, make_sampler
from foreword.training.search.search import SearchResult, search
from foreword.training.search.space import SearchSpace
from foreword.training.search.trial import Trial, losers, ranking, rungs
from foreword.training.search.trial_scheduler import TrialScheduler
from foreword.training.train import TrainResult, train
from models import tiny_model
from training.small_data import recipe, write_jsonl

SPACE = {"lr": [0.003, 0.1], "length": [2, 8], "init": ["random", "auto"]}


def quiet(line: str) -> None:
    del line


def searched(settings: Recipe, plan: SearchConfig, family: str = "llama") -> SearchResult:
    return search(tiny_model(family), settings, plan, say=quiet)


def alone(found: SearchResult, settings: Recipe, family: str = "llama") -> TrainResult:
    """`train` with the settings of one trial of a search."""
    return train(tiny_model(family), replace(settings, out=f"{settings.out}-alone"), say=quiet)


def assert_same(found: SearchResult, single: TrainResult) -> None:
    ours, theirs = found.task.prefix, single.task.prefix
    for one, other in zip((*ours.keys, *ours.values), (*theirs.keys, *theirs.values), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert found.metrics == pytest.approx(single.metrics, abs=1e-6)
    assert (found.before, found.n, found.trained_parameters) == (single.before, single.n, single.trained_parameters)
    assert (found.task.template, found.task.verbalizer) == (single.task.template, single.task.verbalizer)


@pytest.mark.parametrize("eta", [None, 2])
def test_the_winner_is_what_train_gives_with_its_settings(eta, tmp_path):
    settings = recipe(tmp_path, max_steps=10)
    found = searched(settings, SearchConfig.of(SPACE, halving=eta))
    assert found.recipe == replace(settings, **found.winner.point)
    assert_same(found, alone(found, found.recipe))
    assert found.task.provenance["recipe"] == found.recipe.to_json()
    assert len(found.trials) == 8
    assert found.trials[0] is found.winner
    assert found.winner.state == "complete"
    states = [trial.state for trial in found.trials]
    assert states == ["complete"] * 8 if eta is None else {"complete", "dropped"} == set(states)
    written = [json.loads(line) for line in (found.folder / "trials.jsonl").read_text().splitlines()]
    assert sorted(trial["number"] for trial in written) == list(range(8))
    assert (found.folder / "trials.png").stat().st_size > 10_000
    assert (found.folder / "curves.png").is_file()


def test_every_trial_learns_what_a_run_of_its_own_learns(tmp_path):
    """Of different lengths, starts, rates, batches and seeds, beside each other in one batch."""
    settings = recipe(tmp_path, max_steps=10)
    space = {"lr": [0.01, 0.1], "batch_size": [4, 16], "seed": [0, 7], "init": ["random"]}
    found = searched(settings, SearchConfig.of(space, halving="off"))
    for trial in found.trials[:2]:
        single = train(
            tiny_model("llama"), replace(settings, **trial.point, out=str(tmp_path / f"{trial.number}")), say=quiet
        )
        log = json.loads((single.folder / "history.json").read_text())["log"]
        losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
        assert [figures["loss"] for figures in trial.evaluations] == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize("way", [pytest.param("p-tuning", marks=pytest.mark.slow), "lora-hybrid"])
def test_other_methods_are_searched_too(way, tmp_path):
    settings = recipe(tmp_path, method=way, max_steps=5, length=4, lr=None)
    found = searched(settings, SearchConfig.of({"lr": [1e-3, 3e-3]}, halving=None))
    assert_same(found, alone(found, found.recipe))


def test_methods_compete_with_one_another(tmp_path):
    settings = recipe(tmp_path, max_steps=5, length=4, lr=None)
    found = searched(
        settings, SearchConfig.of({"method": ["p-tuning-v2", "prompt-tuning", "prefix-tuning"]}, halving=None)
    )
    assert {trial.point["method"] for trial in found.trials} == {"p-tuning-v2", "prompt-tuning", "prefix-tuning"}
    assert_same(found, alone(found, found.recipe))


def test_new_points_take_the_place_of_losers(tmp_path, monkeypatch):
    most: list[int] = []
    save = TrialScheduler._save
    monkeypatch.setattr(
        TrialScheduler, "_save", lambda contest: most.append(len(contest._together.lanes)) or save(contest)
    )
    found = searched(recipe(tmp_path, max_steps=10), SearchConfig.of(SPACE, at_once=3, halving=2))
    assert max(most) == 3
    assert len(found.trials) == 8
    dropped = [trial for trial in found.trials if trial.state == "dropped"]
    assert dropped
    assert all(trial.step < trial.steps for trial in dropped)
    assert all(trial.step == trial.steps for trial in found.trials if trial.state == "complete")
    assert_same(found, alone(found, found.recipe))


@pytest.mark.parametrize(
    ("space", "trials", "saves"),
    [
        (SPACE, None, 3),
        ({"lr": {"low": 1e-3, "high": 0.3, "log": True}}, 6, 3),
        pytest.param(SPACE, None, 1, marks=pytest.mark.slow),
        pytest.param({"lr": {"low": 1e-3, "high": 0.3, "log": True}}, 6, 1, marks=pytest.mark.slow),
    ],
)
def test_a_search_that_was_killed_goes_on_as_if_nothing_had_been(space, trials, saves, tmp_path, monkeypatch):
    if trials is not None:
        pytest.importorskip("optuna")
    plan = SearchConfig.of(space, trials, at_once=4, halving=2)
    settings = recipe(tmp_path, max_steps=5)
    whole = searched(settings, plan)
    cut = replace(settings, out=str(tmp_path / "cut"))
    save, left = TrialScheduler._save, [saves]

    def killed(contest: TrialScheduler) -> None:
        save(contest)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TrialScheduler, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            searched(cut, plan)
    resumed = searched(replace(cut, resume=True), plan)
    assert [trial.point for trial in resumed.trials] == [trial.point for trial in whole.trials]
    for one, other in zip(resumed.trials, whole.trials, strict=True):
        assert (one.number, one.state, one.step) == (other.number, other.state, other.step)
        assert one.best == pytest.approx(other.best, abs=1e-5)
    for one, other in zip(resumed.task.prefix.keys, whole.task.prefix.keys, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    again = searched(replace(cut, resume=True), plan)
    assert again.metrics == resumed.metrics


def test_another_search_is_not_resumed(tmp_path):
    settings = recipe(tmp_path, max_steps=5)
    searched(settings, SearchConfig.of({"lr": [0.1]}))
    with pytest.raises(TrainingError, match="holds a run already; pass --resume"):
        searched(settings, SearchConfig.of({"lr": [0.1]}))
    with pytest.raises(TrainingError, match="was started with another search"):
        searched(replace(settings, resume=True), SearchConfig.of({"lr": [0.2]}))
    (next(Path(settings.out or "").glob("lanes-*.safetensors"))).write_bytes(b"no tensors")
    with pytest.raises(TrainingError, match=r"lanes-\d+.safetensors is damaged, so the search cannot be resumed"):
        searched(replace(settings, resume=True), SearchConfig.of({"lr": [0.1]}))


def test_a_trial_that_goes_astray_is_nobody_elses_trouble(tmp_path):
    settings = recipe(tmp_path, max_steps=5)
    found = searched(settings, SearchConfig.of({"lr": [0.1, 1e38]}, halving=None))
    assert [trial.state for trial in found.trials] == ["complete", "failed"]
    assert "start again with a smaller --lr" in found.trials[1].why
    assert_same(found, alone(found, found.recipe))
    with pytest.raises(TrainingError, match="no trial could be learned to its end; the loss "):
        searched(replace(settings, out=str(tmp_path / "none")), SearchConfig.of({"lr": [1e38]}))


def test_what_batching_and_halving_save_is_measured_apart(tmp_path):
    settings = recipe(tmp_path, max_steps=40, length=4)
    found = searched(settings, SearchConfig.of({"lr": [0.001, 0.003, 0.01, 0.1]}, halving=2))
    spared = found.savings["halving"]
    assert spared["examples_run"] == sum(trial.step * 16 for trial in found.trials)
    assert spared["examples_run"] + spared["examples_not_run"] == 4 * 40 * 16
    assert spared["dropped"] == sum(trial.state == "dropped" for trial in found.trials) > 0
    four = found.savings["batching"][0]
    assert (four["trials"], four["pairs"]) == (4, 3)
    assert four["times_faster"] == pytest.approx(four["seconds_one_by_one"] / four["seconds_together"])
    assert_same(found, alone(found, found.recipe))


def test_examples_that_are_not_run_are_counted_once():
    done, out = Trial(0, {}, 10, 4, step=10, state="complete"), Trial(1, {}, 10, 8, step=4, state="dropped")
    lost = Trial(2, {}, 10, 4, step=1, state="failed")
    assert halving([done, out, lost]) == {
        "dropped": 1,
        "examples_run": 40 + 32 + 4,
        "examples_not_run": 48,
        "share_not_run": 48 / 124,
    }


def tried(number: int, *scores: float, **fields) -> Trial:
    return Trial(number, {}, 10, 4, evaluations=[{"score": score} for score in scores], best=max(scores), **fields)


def test_losers_are_those_outside_the_best_of_all_who_came_to_the_rung():
    assert (rungs(2, 5), rungs(3, 5), rungs(5, 5)) == ((1, 2, 4), (1, 3), (1,))
    trials = [tried(number, score) for number, score in enumerate((0.5, 0.9, 0.7, 0.7))]
    assert losers(trials, trials, 1, 2) == [trials[0], trials[3]]
    late = tried(4, 0.8)
    assert losers([*trials, late], [late], 1, 2) == []
    later = tried(5, 0.7)
    assert losers([*trials, late, later], [later], 1, 2) == [later]
    astray = tried(6, 0.99, state="failed")
    assert losers([*trials, astray], trials, 1, 2) == [trials[0], trials[3]]
    # The best so far counts, as in the end.
    worse = [tried(0, 0.9, 0.1), tried(1, 0.2, 0.8)]
    assert losers(worse, worse, 2, 2) == [worse[1]]


def test_the_best_come_first_and_the_unfinished_never_win():
    ranked = ranking([tried(0, 0.9, state="dropped"), tried(1, 0.5, state="complete"), tried(2, 0.5, state="complete")])
    assert [trial.number for trial in ranked] == [1, 2, 0]


def test_a_grid_is_tried_once_whatever_was_tried_before():
    space = SearchSpace.parse({"lr": [1.0, 2.0, 3.0], "length": [4, 8]})
    every = make_sampler(space, 6, seed=3)
    asked = [every.ask() for _ in range(7)]
    assert asked[-1] is None
    assert len({json.dumps(point) for point in asked[:-1]}) == 6
    assert asked != [*space.corners(), None]
    rest = make_sampler(space, 6, seed=3)
    for point in asked[:2]:
        rest.again(point or {})
    assert [rest.ask() for _ in range(5)] == asked[2:]


def test_proposed_points_differ_and_depend_on_what_was_heard_alone():
    pytest.importorskip("optuna")
    space = SearchSpace.parse(
        {"lr": {"low": 1e-4, "high": 1.0, "log": True}, "length": {"low": 1, "high": 32}, "init": ["a", "b"]}
    )

    def heard(source: TPESampler, number: int) -> None:
        source.hear(number, 1, number / 20)
        state = ("failed", "dropped", "complete")[number % 3]
        source.end(Trial(number, {}, 10, 4, state=state, best=number / 20))

    first = TPESampler(space, seed=1)
    asked = []
    for number in range(15):
        asked.append(first.ask())
        heard(first, number)
    second = TPESampler(space, seed=1)
    for number, point in enumerate(asked[:12]):
        second.again(point or {})
        heard(second, number)
    for number in range(12, 15):
        assert second.ask() == asked[number]
        heard(second, number)
    assert len({json.dumps(point) for point in asked}) == 15
    assert all(1e-4 <= point["lr"] <= 1 and type(point["length"]) is int for point in asked)
    other = TPESampler(space, seed=2)
    assert other.ask() != asked[0]


def test_a_small_space_is_exhausted_and_not_repeated():
    pytest.importorskip("optuna")
    source = TPESampler(SearchSpace.parse({"length": {"low": 1, "high": 3}}), seed=0)
    asked = [source.ask() for _ in range(3)]
    assert sorted(point["length"] for point in asked) == [1, 2, 3]
    assert source.ask() is None


def test_proposing_needs_optuna(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UsageError, match=r"pip install 'foreword\[search\]'"):
        make_sampler(SearchSpace.parse({"lr": {"low": 0.1, "high": 1.0}}), 4, seed=0)
    assert make_sampler(SearchSpace.parse({"lr": [0.1]}), 4, seed=0).ask() == {"lr": 0.1}


@pytest.mark.parametrize(
    ("varied", "key", "said"),
    [
        ([], "search", "must be a mapping"),
        ({}, "search", "must be a mapping"),
        ({"lenght": [4]}, "search.lenght", "cannot vary 'lenght'; did you mean 'length'"),
        ({"data": ["x"]}, "search.data", "cannot vary 'data'; it takes method, length"),
        ({"lr": 0.1}, "search.lr", "must be a list of values or a range"),
        ({"lr": []}, "search.lr", "must be a list of values or a range"),
        ({"lr": ["fast"]}, "search.lr", "--lr must be a number, got 'fast'"),
        ({"length": [4, 4]}, "search.length", "lists a value twice"),
        ({"length": {"low": 4, "high": 8.5}}, "search.length", "must be a whole number, got 8.5"),
        ({"lr": {"low": 1e-3}}, "search.lr", "has no high"),
        ({"lr": {"low": 2, "high": 1}}, "search.lr", "is empty: low 2 is not under high 1"),
        ({"lr": {"low": 0, "high": 1, "log": True}}, "search.lr", "begin above 0"),
        ({"lr": {"low": 0, "high": 1, "step": 1}}, "search.lr", "a range has low, high, log, not 'step'"),
        ({"lr": {"low": 1, "high": 2, "log": "yes"}}, "search.lr", "log of lr must be true or false"),
        ({"init": {"low": 1, "high": 2}}, "search.init", "has no range"),
    ],
)
def test_a_space_that_is_wrong_names_the_key(varied, key, said):
    with pytest.raises(SettingError) as refused:
        SearchSpace.parse(varied)
    assert refused.value.key == key
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("varied", "changes", "key", "said"),
    [
        ({"lr": [0.1, -1.0]}, {}, "search.lr", "must be above 0, got -1.0"),
        ({"rank": [2, 4]}, {}, "search.rank", "has no option --rank"),
        ({"method": ["p-tuning-v2", "pet"]}, {}, "search.method", "no prompt that an optimizer learns"),
        ({"lr": [0.1]}, {"method": "manual"}, "method", "no prompt that an optimizer learns"),
        ({"lr": [0.1]}, {"members": 2}, "members", "is of a single run"),
        ({"lr": [0.1]}, {"warm_start": ["x"]}, "warm_start", "is of a single run"),
        ({"lr": [0.1]}, {"report_to": "wandb"}, "report_to", "is of a single run"),
        ({"seed": [1, 2]}, {"eval": None}, "search.seed", "draws the held-out rows, too"),
    ],
)
def test_a_plan_that_no_run_could_follow_names_the_key(varied, changes, key, said, tmp_path):
    with pytest.raises(SettingError) as refused:
        SearchConfig.of(varied).check(recipe(tmp_path, **changes))
    assert refused.value.key == key
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"trials": 0}, "trials"),
        ({"at_once": "all"}, "at_once"),
        ({"halving": 1}, "halving"),
        ({"halving": True}, "halving"),
        ({"halving": "fast"}, "halving"),
    ],
)
def test_numbers_of_a_plan_are_checked(keys, key):
    with pytest.raises(SettingError) as refused:
        SearchConfig.of({"lr": [0.1]}, **keys)
    assert refused.value.key == key


def test_defaults_of_a_plan():
    listed = SearchConfig.of(SPACE)
    assert (listed.trials, listed.at_once, listed.eta) == (8, 16, 3)
    assert SearchConfig.of({"lr": {"low": 0.1, "high": 0.2}}, halving=False).trials == 32
    assert [SearchConfig.of(SPACE, halving=off).eta for off in ("off", False, None, 4, "4")] == [None, None, None, 4, 4]


def test_what_cannot_start_is_said_before_anything_is_written(tmp_path):
    settings = recipe(tmp_path, freeze_first=True, init="auto")
    with pytest.raises(SettingError, match="freeze-first would freeze random values") as refused:
        searched(settings, SearchConfig.of({"freeze_first": [False, True], "init": ["auto", "random"]}))
    assert refused.value.key == "search.freeze_first"
    long = write_jsonl(tmp_path / "long.jsonl", [{"text": "a" * 230, "label": "y"}, {"text": "b", "label": "n"}] * 4)
    with pytest.raises(UsageError, match=r"long.jsonl line 1: the example has 2\d\d tokens"):
        searched(recipe(tmp_path, data=long), SearchConfig.of({"length": [4, 40]}))
    assert not (tmp_path / "run").exists()
