"""The grid and Optuna's estimator: no duplicates, and the same proposals after a restart."""

from __future__ import annotations

import json

import pytest

from foreword.errors import UsageError
from foreword.training.search.samplers import TPESampler, make_sampler
from foreword.training.search.space import SearchSpace
from foreword.training.search.trial import Trial


def test_a_grid_is_tried_once_and_replayed_params_are_not_repeated():
    space = SearchSpace.parse({"lr": [1.0, 2.0, 3.0], "length": [4, 8]})
    every = make_sampler(space, 6, seed=3)
    asked = [every.ask() for _ in range(7)]
    assert asked[-1] is None
    assert len({json.dumps(params) for params in asked[:-1]}) == 6
    assert asked != [*space.grid(), None]
    rest = make_sampler(space, 6, seed=3)
    for params in asked[:2]:
        rest.replay(params or {})
    assert [rest.ask() for _ in range(5)] == asked[2:]


def test_proposals_differ_and_depend_on_reported_scores_alone():
    pytest.importorskip("optuna")
    space = SearchSpace.parse(
        {"lr": {"low": 1e-4, "high": 1.0, "log": True}, "length": {"low": 1, "high": 32}, "init": ["a", "b"]}
    )

    def evaluate(sampler: TPESampler, number: int) -> None:
        sampler.report(number, 1, number / 20)
        state = ("failed", "dropped", "complete")[number % 3]
        sampler.tell(Trial(number, {}, 10, 4, state=state, best_score=number / 20))

    first = TPESampler(space, seed=1)
    asked = []
    for number in range(15):
        asked.append(first.ask())
        evaluate(first, number)
    second = TPESampler(space, seed=1)
    for number, params in enumerate(asked[:12]):
        second.replay(params or {})
        evaluate(second, number)
    for number in range(12, 15):
        assert second.ask() == asked[number]
        evaluate(second, number)
    assert len({json.dumps(params) for params in asked}) == 15
    assert all(1e-4 <= params["lr"] <= 1 and type(params["length"]) is int for params in asked)
    other = TPESampler(space, seed=2)
    assert other.ask() != asked[0]


def test_tpe_exhausts_a_small_space_without_duplicates():
    pytest.importorskip("optuna")
    sampler = TPESampler(SearchSpace.parse({"length": {"low": 1, "high": 3}}), seed=0)
    asked = [sampler.ask() for _ in range(3)]
    assert sorted(params["length"] for params in asked) == [1, 2, 3]
    assert sampler.ask() is None


def test_tpe_needs_optuna(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UsageError, match=r"pip install 'foreword\[search\]'"):
        make_sampler(SearchSpace.parse({"lr": {"low": 0.1, "high": 1.0}}), 4, seed=0)
    assert make_sampler(SearchSpace.parse({"lr": [0.1]}), 4, seed=0).ask() == {"lr": 0.1}
