"""``publish --ttl``, ``bank prune`` and ``bank split``."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cli.conftest import Run


@pytest.fixture
def kind(run: Run, tmp_path: Path) -> str:
    """A task with two versions."""
    (tmp_path / "kind.txt").write_text("Be kind.")
    for _ in range(2):
        assert run("publish", "kind", "--system", "kind.txt").status == 0
    return "kind"


def test_a_task_expires_and_is_pruned(run: Run, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Be brief.")
    for name, more in (("short", ("--ttl", "1h")), ("long", ())):
        published = run("publish", name, "--system", "short.txt", *more)
        assert published.status == 0
        assert ("ttl 1h" in published.out) == (name == "short")
    assert run("generate", "short", "Hello", "--max-tokens", 1).status == 0
    shown = run("bank", "show", "short", "--json").json
    assert shown["ttl"] == 3600
    assert "1h without being used" in run("bank", "show", "short").out
    assert "(expired)" not in run("bank", "list").out
    assert run("bank", "prune").out.strip() == "nothing has expired, and nothing was left"
    record = tmp_path / "home" / "bank" / "short"
    (record / "used").write_text("2020-01-31T09:30:00Z\n")  # the version is younger than that
    assert run("generate", "short", "Hello", "--max-tokens", 1).status == 0


def test_wrong_times_are_usage_errors(run: Run, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Be brief.")
    refused = run("publish", "short", "--system", "short.txt", "--ttl", "soon")
    assert refused.status == 2
    assert "such as 7d, found 'soon'" in refused.err


def test_an_expired_task_is_refused_and_removed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Be brief.")
    assert run("publish", "short", "--system", "short.txt", "--ttl", "1s").status == 0
    time.sleep(1.2)
    assert "short (expired)" in run("bank", "list").out
    refused = run("generate", "short", "Hello")
    assert refused.status == 1
    assert "the task 'short' has expired" in refused.err
    assert run("bank", "prune", "--json").json == {"removed": ["short"], "swept": []}
    assert run("bank", "list").out.strip() == "the bank is empty"


def test_a_split_is_set_shown_and_ended(run: Run, kind: str) -> None:
    first, second = run("bank", "show", kind, "--json").json["versions"]
    assert run("bank", "split", kind).out.strip() == f"kind is served as {second} 100 %"
    found = run("bank", "split", kind, "0002=0.1", "0001=0.9")
    assert found.out.strip() == f"kind is served as {second} 10 %, {first} 90 %"
    assert run("bank", "split", kind, "--json").json["split"] == {second: 0.1, first: 0.9}
    assert run("bank", "show", kind, "--json").json["version"] == first
    assert run("bank", "show", kind, "--json").json["split"] == {second: 0.1, first: 0.9}
    assert run("bank", "remove", kind, "--version", "2").status == 2
    assert run("bank", "split", kind, "--off", "--json").json["split"] == {first: 1.0}
    assert run("bank", "split", kind, "2", "--json").json["split"] == {second: 1.0}


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (("0002=1",), "two versions or more"),
        (("0002=much", "0001=1"), "looks like 0002=0.1"),
        (("0002=0", "0001=1"), "above 0"),
        (("0002=0.5", "0001=0.5", "--off"), "--off ends a split"),
    ],
)
def test_what_is_no_split(run: Run, kind: str, weights: tuple[str, ...], sentence: str) -> None:
    refused = run("bank", "split", kind, *weights)
    assert refused.status == 2
    assert sentence in refused.err


def test_an_unknown_version_of_a_split(run: Run, kind: str) -> None:
    refused = run("bank", "split", kind, "7=0.5", "1=0.5")
    assert (refused.status, "no version '7'" in refused.err) == (1, True)
