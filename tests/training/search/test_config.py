"""What a space and a search may be: errors name the key below ``search:``."""

from __future__ import annotations

import pytest

from foreword.errors import SettingError
from foreword.training import tracker
from foreword.training.search.config import SearchConfig
from foreword.training.search.space import SearchSpace
from training.small_data import recipe


@pytest.mark.parametrize(
    ("varied", "key", "message"),
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
def test_a_wrong_space_names_the_key(varied, key, message):
    with pytest.raises(SettingError) as raised:
        SearchSpace.parse(varied)
    assert raised.value.key == key
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("varied", "changes", "key", "message"),
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
def test_params_that_no_run_can_have_name_the_key(varied, changes, key, message, tmp_path, monkeypatch):
    monkeypatch.setattr(tracker, "find_spec", lambda name: True)
    with pytest.raises(SettingError) as raised:
        SearchConfig.of(varied).check(recipe(tmp_path, **changes))
    assert raised.value.key == key
    assert message in str(raised.value)


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
def test_counts_are_checked(keys, key):
    with pytest.raises(SettingError) as raised:
        SearchConfig.of({"lr": [0.1]}, **keys)
    assert raised.value.key == key


def test_defaults():
    grid = {"lr": [0.003, 0.1], "length": [2, 8], "init": ["random", "auto"]}
    listed = SearchConfig.of(grid)
    assert (listed.trials, listed.at_once, listed.eta) == (8, 16, 3)
    assert SearchConfig.of({"lr": {"low": 0.1, "high": 0.2}}, halving=False).trials == 32
    assert [SearchConfig.of(grid, halving=off).eta for off in ("off", False, None, 4, "4")] == [None, None, None, 4, 4]
