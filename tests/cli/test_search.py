"""``foreword search``: the recipe and flags, the table and the files, and what is wrong with which line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cli.conftest import Run
from foreword.bank.bank import Bank

RECIPE = """\
data: reviews.jsonl
eval: reviews.jsonl
template: "{text} is\\\\n{mask}"
verbalizer: {positive: y, negative: n}
max-steps: 6
batch_size: 4
search:
  lr: [1e-3, 0.1]
  length: [2, 4]
halving: 2
"""


@pytest.fixture
def written(reviews: Path, tmp_path: Path) -> Path:
    """A recipe beside its data."""
    file = tmp_path / "search.yaml"
    file.write_text(RECIPE)
    return file


def test_the_winner_is_published_and_its_recipe_trains_the_same(run: Run, written: Path, tmp_path: Path) -> None:
    made = run("search", written, "--out", "found", "--publish", "reviews", "--json")
    assert made.status == 0, made.err
    bank = Bank(tmp_path / "home" / "bank")
    task = bank.load("reviews")
    assert (made.json["task"], made.json["n"], len(made.json["trials"])) == (task.ref, 24, 4)
    assert made.json["winner"] == made.json["trials"][0]
    assert task.prefix.length == made.json["winner"]["point"]["length"]
    assert task.provenance["search"] == {
        "trials": 4,
        "winner": task.provenance["search"]["winner"],
        "varied": made.json["winner"]["point"],
    }
    assert made.json["savings"]["halving"]["dropped"] > 0
    for file in ("table", "picture", "recipe"):
        assert (tmp_path / made.json[file]).is_file()
    recipe = yaml.safe_load((tmp_path / made.json["recipe"]).read_text())
    assert {key: recipe[key] for key in ("lr", "length")} == made.json["winner"]["point"]
    assert not {"search", "halving", "publish", "out"} & set(recipe)
    again = run("train", made.json["recipe"], "--out", "again", "--publish", "alone", "--json")
    assert again.status == 0, again.err
    assert (again.json["metrics"], again.json["metrics_before"]) == (made.json["metrics"], made.json["metrics_before"])
    assert bank.load("alone").template == task.template == "{text} is\n{mask}"
    for one, other in zip(bank.load("alone").prefix.keys, task.prefix.keys, strict=True):
        assert (one - other).abs().max() < 1e-4
    assert run("publish", "later", "--run", "found").status == 0
    assert bank.load("later").prefix.digest == task.prefix.digest


def test_flags_vary_too_and_people_get_a_table(run: Run, reviews: Path) -> None:
    flags = ("--template", "{text} is{mask}", "--max-steps", 2, "--batch-size", 4, "--at-once", 2, "--halving", "off")
    made = run("search", "--data", reviews, "--vary", "lr=[1e-3, 0.1]", "--vary", "freeze-first=[true]", *flags)
    assert made.status == 0, made.err
    lines = made.out.splitlines()
    assert lines[0].split() == ["trial", "lr", "freeze_first", "accuracy", "loss", "steps"]
    assert [line.split()[-1] for line in lines[1:3]] == ["complete", "complete"]
    assert "halving: 0 of 2 trials dropped, 0 of 16 examples not run (0%)" in made.out
    assert "batching: not measured" in made.out
    assert lines[-1].startswith("not published; foreword publish NAME --run runs/search-")


def test_a_flag_goes_before_the_recipe(run: Run, written: Path) -> None:
    made = run("search", written, "--vary", "lr=[0.2]", "--vary", "length=[2]", "--max-steps", 2, "--json")
    assert [trial["point"] for trial in made.json["trials"]] == [{"lr": 0.2, "length": 2}]
    assert made.json["winner"]["steps"] == 2


def test_another_tasks_values_are_a_start(run: Run, written: Path) -> None:
    assert run("search", written, "--publish", "parent", "--vary", "length=[4]", "--max-steps", 2).status == 0
    more = ("--vary", "length=[4]", "--vary", "init=[task:parent, random]", "--max-steps", 2, "--json")
    made = run("search", written, *more)
    assert made.status == 0, made.err
    assert {trial["point"]["init"] for trial in made.json["trials"]} == {"task:parent", "random"}


@pytest.mark.parametrize(
    ("line", "now", "number", "said"),
    [
        ("  lr: [1e-3, 0.1]", "  lr: [fast]", 8, "lr must be a number, got 'fast'."),
        ("  lr: [1e-3, 0.1]", "  learning: [1]", 8, "a search cannot vary 'learning'; it takes "),
        ("  length: [2, 4]", "  length: [0]", 9, "length must be above 0, got 0."),
        ("  length: [2, 4]", "  seed: {low: 9, high: 1}", 9, "the range of seed is empty"),
        ("halving: 2", "halving: 1", 10, "halving must be a whole number from 2"),
        ("halving: 2", "trials: none", 10, "trials must be a whole number above 0, got 'none'."),
        ("halving: 2", "halvin: 2", 10, "there is no key 'halvin'; did you mean 'halving'?"),
        ("halving: 2", "lr: 0.01", 10, "lr would be ignored, since the search varies it; leave one of them out."),
        ("  length: [2, 4]", "  epochs: [1, 2]", 5, "max-steps would be ignored, since the search varies it"),
        ("halving: 2", "members: 2", 10, "members is of a single run, not of a search; leave it out."),
    ],
)
def test_the_line_is_shown(run: Run, written: Path, line: str, now: str, number: int, said: str) -> None:
    written.write_text(RECIPE.replace(line, now))
    refused = run("search", written, "--model", "nowhere")
    assert refused.status == 2
    sentence, frame = refused.err.rstrip("\n").split("\n")
    assert sentence.startswith(f"foreword: recipe {written} line {number}: ")
    assert said in sentence
    assert frame == f"  {number} | {now if number > 5 else 'max-steps: 6'}"


def test_a_flag_is_not_the_recipes_fault(run: Run, written: Path) -> None:
    refused = run("search", written, "--vary", "lr=[fast]")
    assert refused.err == "foreword: --lr must be a number, got 'fast'.\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "there is nothing to search; pass --vary KEY=LIST, or a recipe with search: in it."),
        (("--vary", "lr"), "--vary 'lr' is not KEY=LIST"),
        (("--vary", "lr=[1"), "is not YAML"),
        (("--vary", "lr=[0.1]", "--publish", "Bad Name"), "a task name is 1 to 64 of "),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(run: Run, reviews: Path, flags: tuple[str, ...], said: str) -> None:
    refused = run("search", "--data", reviews, *flags)
    assert (refused.status, refused.out) == (2, "")
    assert said in refused.err
    assert refused.err.count("\n") == 1


def test_it_goes_on(run: Run, written: Path, tmp_path: Path) -> None:
    made = run("search", written, "--out", "found", "--json").json
    again = run("search", written, "--out", "found", "--resume", "--json").json
    assert (again["winner"], again["metrics"]) == (made["winner"], made["metrics"])
    assert "pass --resume to go on" in run("search", written, "--out", "found").err
    kept = [json.loads(line) for line in (tmp_path / made["table"]).read_text().splitlines()]
    assert sorted(kept, key=lambda trial: trial["number"]) == sorted(made["trials"], key=lambda trial: trial["number"])
