"""Splits: several versions of a task that are served side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from foreword.bank.bank import Bank
from foreword.bank.split import Split, parse_weights
from foreword.core import Task
from foreword.errors import CorruptFile, UnknownTask, UsageError

MakeTask = Callable[..., Task]

OLD, NEW = "0001-000000000000", "0002-000000000000"


@pytest.fixture(params=["disk", "store"])
def bank(request: pytest.FixtureRequest, tmp_path: Path, make_task: MakeTask) -> Bank:
    place = tmp_path / "bank" if request.param == "disk" else f"memory://{tmp_path.name}"
    bank = Bank(place, cache=tmp_path / "cache")
    for _ in range(3):
        bank.publish(make_task())
    return bank


def test_weights_are_parts_of_the_whole_and_the_newest_comes_first() -> None:
    split = Split.of({OLD: 9, NEW: 1})
    assert list(split.weights.items()) == [(NEW, 0.1), (OLD, 0.9)]
    assert split.current == OLD
    assert split.describe() == f"{NEW} 10 %, {OLD} 90 %"


def test_a_user_keeps_the_version_and_all_users_follow_the_weights() -> None:
    split = Split.of({OLD: 0.75, NEW: 0.25})
    chosen = {f"user-{number}": split.choose("reviews", f"user-{number}") for number in range(4000)}
    assert 0.22 < Counter(chosen.values())[NEW] / 4000 < 0.28
    assert all(split.choose("reviews", user) == version for user, version in chosen.items())
    more = Split.of({OLD: 0.5, NEW: 0.5})
    assert all(more.choose("reviews", user) == NEW for user, version in chosen.items() if version == NEW)
    other = Counter(split.choose("mail", user) == version for user, version in chosen.items())
    assert other[False] > 1000  # not the same users try what is new in every task


def test_without_a_user_versions_are_drawn() -> None:
    split = Split.of({OLD: 0.75, NEW: 0.25})
    assert 0.2 < Counter(split.choose("reviews", None) for _ in range(4000))[NEW] / 4000 < 0.3


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({OLD: 1.0}, "two versions or more"),
        ({OLD: 1.0, NEW: 0.0}, "a number above 0, found 0"),
        ({OLD: 1.0, NEW: -1.0}, "a number above 0, found -1"),
        ({OLD: 1.0, NEW: float("nan")}, "a number above 0, found nan"),
    ],
)
def test_what_is_no_split(weights: dict[str, float], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Split.of(weights)


def test_weights_as_they_are_typed() -> None:
    assert parse_weights(["0002=0.1", "1=0.9"]) == {"0002": 0.1, "1": 0.9}
    for wrong in (["0002"], ["=1"], ["0002=much"], ["0002=inf"]):
        with pytest.raises(UsageError, match=r"looks like 0002=0\.1"):
            parse_weights(wrong)
    with pytest.raises(UsageError, match="two weights"):
        parse_weights(["2=1", "2=2"])


def test_a_split_is_stored_and_its_largest_version_is_current(bank: Bank) -> None:
    first, second, third = bank.versions("sst2")
    assert bank.split("sst2") is None
    bank.set_split("sst2", {"0003": 0.1, "1": 0.9})
    split = bank.split("sst2")
    assert split is not None
    assert dict(split.weights) == {third: 0.1, first: 0.9}
    assert bank.current("sst2") == first
    assert bank.load("sst2").version == first
    assert Bank(bank.location).split("sst2") == split
    bank.set_split("sst2", {second: 3, first: 1})
    assert bank.current("sst2") == second
    assert bank.verify() == []


def test_publishing_and_rolling_back_end_it(bank: Bank, make_task: MakeTask) -> None:
    weights = {"2": 0.5, "1": 0.5}
    bank.set_split("sst2", weights)
    published = bank.publish(make_task())
    assert bank.split("sst2") is None
    assert bank.current("sst2") == published.version
    bank.set_split("sst2", weights)
    bank.rollback("sst2", bank.current("sst2"))
    assert bank.split("sst2") is None


def test_a_split_of_a_version_that_is_served_no_more_is_over(bank: Bank) -> None:
    """As when an older Foreword, which does not know the file, publishes or rolls back."""
    bank.set_split("sst2", {"2": 0.5, "1": 0.5})
    bank._store.write_current("sst2", bank.versions("sst2")[2])
    assert bank.split("sst2") is None


def test_versions_of_a_split_are_not_removed(bank: Bank) -> None:
    bank.set_split("sst2", {"2": 0.1, "1": 0.9})
    with pytest.raises(UsageError, match="bank split sst2 --off"):
        bank.remove("sst2", "2")
    bank.remove("sst2", "3")


def test_unknown_versions_and_one_twice(bank: Bank) -> None:
    with pytest.raises(UnknownTask, match="no version '7'"):
        bank.set_split("sst2", {"7": 0.5, "1": 0.5})
    with pytest.raises(UsageError, match="the same version"):
        bank.set_split("sst2", {"0001": 0.5, "1": 0.5})
    assert bank.split("sst2") is None


@pytest.mark.parametrize(
    "text",
    [
        "half",
        "{}",
        '{"format": 1, "current": "../x", "weights": {}}',
        f'{{"format": 1, "current": "{OLD}", "weights": {{"{OLD}": 1}}}}',
        f'{{"format": 1, "current": "{OLD}", "weights": {{"{OLD}": 1, "{NEW}": 0}}}}',
        f'{{"format": 1, "current": "{OLD}", "weights": {{"{OLD}": 1, "../../x": 1}}}}',
    ],
)
def test_a_damaged_split_is_an_error_with_a_mend(tmp_path: Path, make_task: MakeTask, text: str) -> None:
    bank = Bank(tmp_path / "bank")
    bank.publish(make_task())
    (tmp_path / "bank" / "sst2" / "split").write_text(text)
    with pytest.raises(CorruptFile, match=r"sst2/split.*end it with `foreword bank split sst2 --off`"):
        bank.split("sst2")
    bank.rollback("sst2", bank.current("sst2"))
    assert bank.split("sst2") is None
