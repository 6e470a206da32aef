"""How far work is: lines now and then without a terminal, a bar on one."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time

from foreword import progress
from foreword.progress import Progress


def test_lines_where_there_is_no_terminal(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("evaluating", 200, "rows") as bar:
        for _ in range(100):
            now[0] += 0.5
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "evaluating: 8/200 rows, 2 rows/s, 1 min 36 s left"
    assert len(lines) == 12


def test_work_that_does_not_advance_is_not_silent(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.2)
    monkeypatch.setattr(progress, "POLL_INTERVAL", 0.05)
    with Progress("searching", 4, "trials"), Progress("loading tiny"):
        time.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert set(lines) <= {"loading tiny: 0 s", "loading tiny: 1 s"}, "the innermost work speaks"
    assert len(lines) == 2


def test_what_was_done_before_says_nothing_about_the_rate(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("learning", 100, "steps") as bar:
        bar.set_completed(80, before=True)
        now[0] = 10.0
        bar.advance(10)
    assert capsys.readouterr().err == "learning: 90/100 steps, 1 steps/s, 10 s left\n"


def test_quick_work_says_nothing(capsys):
    with Progress("evaluating", 10, "rows", poll=lambda: 10) as bar:
        bar.advance(10)
    assert capsys.readouterr().err == ""


COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|9[0-7])[0-9;]*m")
WORK = """
import time
from foreword.progress import Progress
with Progress("evaluating", 40, "rows", poll=lambda: 30):
    time.sleep(0.6)
"""


def test_a_bar_on_a_terminal():
    assert "evaluating" in shown({})
    assert "30/40" in shown({})
    assert "rows/s" in shown({})
    assert COLOUR.search(shown({}))


def test_no_colour_where_none_is_wanted():
    plain = shown({"NO_COLOR": "1"})
    assert "30/40" in plain
    assert not COLOUR.search(plain)


def test_a_dumb_terminal_gets_no_bar():
    assert shown({"TERM": "dumb"}) == ""


def shown(environment: dict[str, str]) -> str:
    """What a real terminal receives."""
    leader, follower = pty.openpty()
    clean = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", WORK], stderr=follower, env={**clean, "TERM": "xterm-256color", **environment}
    )
    os.close(follower)
    received = b""
    try:
        while data := os.read(leader, 4096):
            received += data
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0
    os.close(leader)
    return received.decode()
