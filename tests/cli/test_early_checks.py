"""What cannot be done is said in one sentence before the model, and what brings it, is loaded."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cli.processes import environment

# Seconds of processor time.
BUDGET = 2.0
# Nothing is there: a command that came as far as the model would say so.
MODEL = "./there-is-no-model"
ROWS = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(40)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "bad.yaml").write_text("data: rows.jsonl\nlenght: 3\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train --data rows.jsonl --method p-tunning", "unknown method 'p-tunning', did you mean 'p-tuning'; choose"),
        ("search --data rows.jsonl --vary lr=[1,2] --method x", "unknown method 'x'; choose p-tuning-v2"),
        ("train-many nodir/", "there is no nodir/; give a folder"),
        ("train --data rows.jsonl --init tsk:foo", "--init tsk:foo is nothing to start from, did you mean task:foo;"),
        ("train --data rows.jsonl --init task:missing", "no task 'missing' in "),
        ("train --data rows.jsonl --dtype flaot32", "--dtype must be one of auto, float32, bfloat16, float16, got"),
        ("train --data rows.jsonl --device gpu", "--device must be one of auto, cpu, cuda, mps, got 'gpu'."),
        ("train --data rows.jsonl --report-to tensorbord", "--report-to tensorbord is no tracker; choose none, "),
        ("train --data rows.jsonl --out run", "run holds a run already; pass --resume to go on with it"),
        ("train --data rows.jsonl --resume --out new", "new holds no run to resume; leave out --resume."),
        ("train bad.yaml", "there is no key 'lenght'; did you mean 'length'?"),
        ("train --data none.jsonl", "none.jsonl cannot be read: No such file or directory; check the path."),
        ("train --data rows.jsonl --template {txt}{mask}", "rows.jsonl line 1: the row has no field 'txt'"),
        ("train --data rows.jsonl --template {text}{mask} --label-field lbl", "rows.jsonl line 1: "),
        ("export peft reviews full", "full is not an empty folder; give another path, or clear it first."),
        ("export peft reviews out", "no task 'reviews' in "),
        ("bench tttft", "there is no workload 'tttft'; did you mean ttft? There are ttft, step, serve"),
        ("bank compose one two --publish three", "no task 'one' in "),
        ("generate nobody hello", "no task 'nobody' in "),
        ("chat nobody", "no task 'nobody' in "),
        ("classify nobody hello", "no task 'nobody' in "),
        ("eval nobody --data rows.jsonl", "no task 'nobody' in "),
        ("distill nobody", "no task 'nobody' in "),
        ("publish x --system none.txt", "none.txt cannot be read: No such file or directory; check the path."),
        ("cache none.json", "none.json"),
        ("generate hello", "there is no model folder ./there-is-no-model; give a folder"),
    ],
)
def test_it_is_said_early(command, said, place):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "foreword", *command.split()],
        env=environment(place / MODEL, place / "home", FOREWORD_MODEL=MODEL),
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert said in done.stderr
    assert done.stderr.startswith("foreword: ")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent <= BUDGET, f"{spent:.2f} s of processor time"


def test_a_tracker_that_is_not_installed_is_named(place):
    code = (
        "import sys, foreword.training.tracker as t; t.find_spec = lambda package: None;"
        "sys.argv = ['foreword', 'train', '--data', 'rows.jsonl', '--report-to', 'wandb'];"
        "from foreword.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
    assert done.stderr == "foreword: --report-to wandb needs a package; run `pip install wandb`.\n"
    assert done.returncode == 2
