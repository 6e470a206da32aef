"""Ctrl-C, as a real SIGINT to a real process: no half state, one sentence, exit status 130."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cli.processes import environment, interrupt, start, wait_for
from foreword.bank.bank import Bank
from foreword.cli.interruption import on_interrupt
from foreword.errors import Interrupted


@pytest.fixture
def env(folder: Path, tmp_path: Path) -> dict[str, str]:
    return environment(folder, tmp_path / "home")


def said(process: subprocess.Popen[str]) -> str:
    """The last line of stderr of a process that is interrupted now."""
    _, err = interrupt(process)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_a_run_goes_on_with_the_command_that_is_said(reviews, tmp_path, env):
    template = ("--template", "Review: {text}:{mask}", "--verbalizer", '{"positive": " good", "negative": " bad"}')
    args = ["train", "--data", reviews, *template, "--length", 4, "--max-steps", 60, "--batch-size", 2]
    process = start([*args, "--publish", "mine", "--json"], tmp_path, env)
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/checkpoint-12/trainer_state.json")), process)
    line = said(process)
    assert line.startswith("foreword: stopped; what was learned is in runs/mine-")
    assert Bank(tmp_path / "home" / "bank").names() == []
    command = shlex.split(line.partition("go on with: ")[2])
    assert command[0] == "foreword"
    assert command[-3:-1] == ["--resume", "--out"]
    resumed = start(command[1:], tmp_path, env)
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert json.loads(out)["task"].startswith("mine@0001-")
    assert "step 3/60" not in err


def test_a_run_goes_on_exactly_where_it_was_stopped_and_can_be_prolonged(reviews, tmp_path, env):
    template = ("--template", "Review: {text}:{mask}", "--verbalizer", '{"positive": " good", "negative": " bad"}')
    args = ["train", "--data", reviews, *template, "--length", 4, "--batch-size", 2, "--json"]

    def prefix(name: str) -> bytes:
        bank = Bank(tmp_path / "home" / "bank")
        return (Path(bank.location) / name / "versions" / bank.current(name) / "prefix.safetensors").read_bytes()

    whole = start([*args, "--max-steps", 100, "--publish", "whole"], tmp_path, env)
    assert whole.wait(timeout=120) == 0
    process = start([*args, "--max-steps", 100, "--publish", "parts", "--out", "parts"], tmp_path, env)
    wait_for(lambda: list(tmp_path.glob("parts/checkpoints/checkpoint-20/trainer_state.json")), process)
    said(process)
    stopped = max(int(each.name.partition("-")[2]) for each in tmp_path.glob("parts/checkpoints/*"))
    assert stopped % 20, "a checkpoint of the step that it was stopped at"
    go_on = ["--publish", "parts", "--out", "parts", "--resume"]
    resumed = start([*args, "--max-steps", 100, *go_on], tmp_path, env)
    assert resumed.wait(timeout=120) == 0
    assert prefix("parts") == prefix("whole")
    before = json.loads((tmp_path / "parts/recipe.json").read_text())
    assert (before["max_steps"], before["length"], before["data"]) == (100, 4, str(reviews))
    assert before["lr"] == 0.005
    assert len(before["data_sha256"]) == 64
    longer = start([*args, "--max-steps", 120, *go_on], tmp_path, env)
    _, err = longer.communicate(timeout=120)
    assert longer.returncode == 0, err
    assert "step 120/120" in err
    assert "step 96/120" not in err, "it goes on behind step 100"
    assert json.loads((tmp_path / "parts/recipe.json").read_text())["max_steps"] == 120
    shorter = start([*args, "--max-steps", 80, *go_on], tmp_path, env)
    _, err = shorter.communicate(timeout=120)
    assert "was started with 120 steps, now 80; a run can be prolonged, not shortened" in err


def test_a_run_that_has_written_nothing_starts_again(tmp_path, env):
    fifo = tmp_path / "never.jsonl"
    os.mkfifo(fifo)
    process = start(["train", "--data", fifo, "--out", "run"], tmp_path, env)
    with open(fifo, "w"):  # from now on it waits for rows
        line = said(process)
    assert line == f"foreword: stopped; nothing was written; start again: foreword train --data {fifo} --out run"
    assert not (tmp_path / "run").exists()


def test_many_prompts_are_published_or_not_and_nothing_between(tmp_path, env):
    rows = [{"task_id": f"t{i}", "prompt": f"text number {i}"} for i in range(500)]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    process = start(["cache", "prompts.json"], tmp_path, env)
    bank = Bank(tmp_path / "home" / "bank")
    wait_for(lambda: len(bank.names()) > 2, process)
    line = said(process)
    names = bank.names()
    assert (
        line
        == f"foreword: stopped; {len(names)} of 500 prompts are published; start again: foreword cache prompts.json"
    )
    assert bank.verify() == []
    assert [len(bank.versions(name)) for name in names] == [1] * len(names)
    assert not list((tmp_path / "home" / "bank").rglob(".tmp-*"))


def test_publishing_says_what_is_true(tmp_path, env):
    os.mkfifo(tmp_path / "never.txt")
    process = start(["publish", "mine", "--text", "never.txt"], tmp_path, env)
    with open(tmp_path / "never.txt", "w"):
        # Opening let it go on. In the microseconds until it waits for the text, a signal is noted by Python and not
        # looked at before the text comes, which here is never.
        time.sleep(0.3)
        line = said(process)
    assert line == "foreword: stopped; nothing was published; start again: foreword publish mine --text never.txt"


def test_an_answer_that_is_printed(endless, tmp_path):
    args = ["generate", "Once", "--max-tokens", 100_000]
    process = start(args, tmp_path, environment(endless, tmp_path / "home"))
    assert process.stdout is not None
    process.stdout.read(40)
    assert said(process) == "foreword: stopped."


def test_a_chat_that_waits_for_a_pipe(tmp_path, env):
    process = start(["chat"], tmp_path, env, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("/help\n")
    process.stdin.flush()
    while "always a question" not in process.stdout.readline():
        pass
    assert said(process) == "foreword: stopped."


def test_a_server(tmp_path, env):
    process = start(["serve", "--port", 0], tmp_path, env)
    assert process.stderr is not None
    while "serving" not in process.stderr.readline():
        pass
    assert said(process) == "foreword: stopped."


def test_what_an_evaluation_leaves(run, reviews, tmp_path, env):
    """A measurement that is stopped while it loads has written nothing."""
    run("train", "--data", reviews, "--method", "manual", "--publish", "bare")
    rows = tmp_path / "many.jsonl"
    rows.write_text(reviews.read_text() * 4000)
    process = start(["eval", "bare", "--data", rows, "--predictions", "out.jsonl"], tmp_path, env)
    wait_for(
        lambda: len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 2, process
    )  # the engine's thread is there
    assert said(process).startswith("foreword: stopped; nothing was written; start again: foreword eval bare --data ")
    assert not (tmp_path / "out.jsonl").exists()


def test_sigterm_ends_a_command_as_ctrl_c_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"^stopped; nothing was lost"), on_interrupt(lambda: "nothing was lost"):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
