"""`foreword train-many` from the command line, alone and in two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.small_data import ANSWERS, examples, write_jsonl

SETTINGS = ("--template", "{text}{mask}", "--init", "random", "--length", 4, "--max-steps", 4, "--batch-size", 4)


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """Three users, one of whom has too few rows."""
    folder = tmp_path / "users"
    folder.mkdir()
    for index, name in enumerate(("anna", "ben")):
        write_jsonl(folder / f"{name}.jsonl", examples(20, 60 + index, ANSWERS))
    write_jsonl(folder / "few.jsonl", examples(2, 1))
    return folder


def test_publishes_who_is_better_off_and_says_what_became_of_all(run, users):
    words = (*SETTINGS, "--max-steps", 12, "--lr", 0.1, "--publish-prefix", "user-", "--out", "run")
    done = run("train-many", users, *words, "--json")
    assert done.status == 0, done.err
    found = done.json
    assert (found["n"], found["learned"]) == (3, 2)
    assert "fewer than 8" in found["left_out"]["few"]
    published = {ref.partition("@")[0] for ref in found["published"]}
    assert {name.removeprefix("user-") for name in published} | set(found["base_better"]) == {"anna", "ben"}
    assert published
    assert {each["name"] for each in run("bank", "list", "--json").json["tasks"]} == published
    assert json.loads(Path("run/summary.json").read_text()) == found
    assert Path("run/gains.png").read_bytes().startswith(b"\x89PNG")
    again = run("train-many", users, *words, "--resume")
    assert again.status == 0
    assert "2 of 3 tasks learned" in again.out


def test_what_is_not_published_is_in_the_run_folder(run, users):
    done = run("train-many", users, *SETTINGS, "--no-publish", "--out", "run", "--json")
    assert done.status == 0, done.err
    assert done.json["published"] == []
    shown = run("publish", "annas", "--run", "run/tasks/anna", "--json")
    assert shown.status == 0, shown.err
    assert shown.json["length"] == 4


def test_those_that_the_base_model_is_better_at_are_published_only_if_told(run, users):
    """A rate of nearly nothing moves nobody away from random values."""
    bad = (*SETTINGS, "--lr", 1e-9, "--seed", 3)
    done = run("train-many", users, *bad, "--out", "one", "--json")
    worse = done.json["base_better"]
    assert len(done.json["published"]) == 2 - len(worse)
    everybody = run("train-many", users, *bad, "--publish-all", "--out", "two", "--json")
    assert len(everybody.json["published"]) == 2
    assert everybody.json["base_better"] == worse


def test_a_recipe_may_give_tasks_settings_of_their_own(run, users):
    recipe = Path("many.yaml")
    recipe.write_text(
        f"data: {users}\ntemplate: '{{text}}{{mask}}'\ninit: random\nlength: 4\nmax_steps: 4\nbatch_size: 4\n"
        "tasks:\n  ben: {max_steps: 3, lr: 0.05}\nout: run\n"
    )
    assert "are two recipes" in run("train-many", recipe, "--recipe", "other.yaml").err
    done = run("train-many", recipe, "--no-publish", "--json")
    assert done.status == 0, done.err
    ended = [json.loads(line) for line in Path("run/ended-0.jsonl").read_text().splitlines()]
    assert {each["task"]: each["steps"] for each in ended if each["status"] == "learned"} == {"anna": 4, "ben": 3}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tasks", '{"nobody": {"lr": 1}}'), "names 'nobody', of which there are no rows"),
        (("--tasks", "{"), "neither JSON nor a JSON file"),
        (("--publish-prefix", "User-"), "anna.jsonl: a task name is"),
        (("--no-publish", "--publish-all"), "contradicts"),
        (("--resume",), "--resume needs --out"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(run, users, flags, message):
    done = run("train-many", users, *SETTINGS, *flags)
    assert done.status == 2
    assert message in done.err
    assert not Path("runs").exists()


def test_no_rows_at_all_is_said(run):
    done = run("train-many")
    assert done.status == 2
    assert "name a folder or a file" in done.err


def test_two_processes_share_the_tasks(users, folder, tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    home = {"FOREWORD_HOME": str(tmp_path / "home"), "FOREWORD_MODEL": str(folder), "OMP_NUM_THREADS": "1"}
    for index in range(4):
        write_jsonl(users / f"u{index}.jsonl", examples(12, 80 + index))
    words = ("train-many", users, *SETTINGS, "--shared-init", "--publish-all", "--out", tmp_path / "run", "--json")
    done = subprocess.run(
        [sys.executable, *launch, "-m", "foreword", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **home},
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["n"], found["learned"], len(found["published"])) == (7, 6, 6)
    ended = [
        {json.loads(line)["task"] for line in (tmp_path / "run" / f"ended-{rank}.jsonl").read_text().splitlines()}
        for rank in range(2)
    ]
    assert all(ended)
    assert not ended[0] & ended[1]
