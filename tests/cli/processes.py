"""``foreword`` as a process of its own, on a terminal or on pipes, and real signals."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import foreword

SOURCE = Path(foreword.__file__).parents[1]
SECONDS = 60.0


def environment(folder: Path, home: Path, **more: str) -> dict[str, str]:
    """A model, a home, and this very code."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    own = {"FOREWORD_MODEL": str(folder), "FOREWORD_HOME": str(home), "PYTHONPATH": str(SOURCE)}
    return {**inherited, **own, "TERM": "xterm-256color", **more}


def start(args: list[str], cwd: Path, env: dict[str, str], **options) -> subprocess.Popen[str]:
    """``foreword ARGS`` on pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "foreword", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=env,
        preexec_fn=_heed_ctrl_c,
        **options,
    )


def _heed_ctrl_c() -> None:
    """Whoever runs the tests in the background ignores SIGINT, and a child inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(happened, process: subprocess.Popen[str]) -> None:
    """Look again and again until something has happened that the process does."""
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Send SIGINT and wait for the end; the two outputs."""
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=SECONDS)


class Terminal:
    """``foreword ARGS`` on a terminal of its own; keys go in, what is shown comes out."""

    def __init__(self, args: list[str], cwd: Path, env: dict[str, str]) -> None:
        pid, self._leader = pty.fork()
        if pid == 0:
            os.chdir(cwd)
            _heed_ctrl_c()
            os.execve(sys.executable, [sys.executable, "-m", "foreword", *map(str, args)], env)
        self._pid = pid
        self._unread = self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self._leader, keys.encode())

    def until(self, text: str, seconds: float = SECONDS) -> str:
        """What is shown behind the last text that was asked for, up to and with another."""
        deadline = time.monotonic() + seconds
        while text not in self._unread:
            assert time.monotonic() < deadline, f"no {text!r} in {self._unread!r} behind {self.shown!r}"
            self._unread += self._read(0.1)
        before, _, self._unread = self._unread.partition(text)
        return before + text

    def end(self) -> int:
        """Its exit status, once it has left by itself."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            self._read(0.05)
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                os.close(self._leader)
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"it did not leave: {self.shown!r}")

    def close(self) -> None:
        """End it, if it has not left."""
        try:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass

    def _read(self, seconds: float) -> str:
        try:
            if not select.select([self._leader], [], [], seconds)[0]:
                return ""
            found = os.read(self._leader, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            return ""
        self.shown += found
        return found
