"""`Progress`: how far a long piece of work is, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

Say = Callable[[str], None]
"""Prints a line about the progress of a run."""

# Seconds between two lines where there is no terminal.
LINE_INTERVAL = 10.0
# Seconds between two looks at work that does not report by itself.
POLL_INTERVAL = 0.25


def on_terminal() -> bool:
    """Whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Progress:
    """Counts work that is done, with its rate and the time that is left; a context manager.

    Args:
        what: is being done, such as ``evaluating``.
        total: how much there is.
        unit: what is counted, such as ``rows``.
        watch: how much is done, asked for again and again, where the work does not call `advance`.
    """

    def __init__(self, what: str, total: int, unit: str, poll: Callable[[], int] | None = None) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._watch = poll
        self._done, self._before = 0, 0
        self._started = self._said = time.monotonic()
        self._bar: Bar | None = None
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self._started = self._said = time.monotonic()
        if on_terminal():
            self._bar = _bar()
            self._bar.add_task(self._what, total=self._total, unit=self._unit, rate="")
            self._bar.start()
        if self._watch is not None:
            self._watcher = threading.Thread(target=self._look, name="foreword-progress", daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._watcher is not None:
            self._watcher.join()
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """So much more is done."""
        self.set_completed(self._done + count)

    def set_completed(self, done: int, *, before: bool = False) -> None:
        """So much is done in all.

        Args:
            before: it was done before this run began, and says nothing about how fast it goes.
        """
        self._done = min(done, self._total)
        if before:
            self._before = self._done
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, rate=self._rate_text)
        elif time.monotonic() - self._said >= LINE_INTERVAL:
            self._said = time.monotonic()
            print(self, file=sys.stderr, flush=True)

    def __str__(self) -> str:
        """Such as ``evaluating: 120/872 rows, 14.2 rows/s, 53 s left``."""
        parts = [f"{self._what}: {self._done}/{self._total} {self._unit}", self._rate_text]
        rate = self._rate
        if rate:
            parts.append(f"{_duration((self._total - self._done) / rate)} left")
        return ", ".join(filter(None, parts))

    @property
    def _rate(self) -> float:
        """Units a second; 0 while nothing is known."""
        seconds = time.monotonic() - self._started
        return (self._done - self._before) / seconds if seconds > 0 else 0.0

    @property
    def _rate_text(self) -> str:
        return f"{self._rate:.3g} {self._unit}/s" if self._rate else ""

    def _look(self) -> None:
        assert self._watch is not None
        while not self._ended.wait(POLL_INTERVAL):
            self.set_completed(self._watch())


def _bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}  {task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
