"""`Progress`: a progress bar on stderr where that is a terminal, and elsewhere a line every few seconds."""

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
"""Prints a line about a run, such as `print` or `click.echo`."""

# Seconds between two lines where there is no terminal.
LINE_INTERVAL = 10.0
# Seconds between two calls of ``poll``.
POLL_INTERVAL = 0.25


def on_terminal() -> bool:
    """Whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Progress:
    """Progress bar of one piece of work, with rate and remaining time; a context manager.

    Args:
        what: the work, such as ``evaluating``.
        total: number of units.
        unit: their name, such as ``rows``.
        poll: number of finished units, called every `POLL_INTERVAL` seconds; for work that does not call `advance`.
    """

    def __init__(self, what: str, total: int, unit: str, poll: Callable[[], int] | None = None) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._poll = poll
        self._done, self._before = 0, 0
        self._started = self._printed = time.monotonic()
        self._bar: Bar | None = None
        self._exited = threading.Event()
        self._poller: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self._started = self._printed = time.monotonic()
        if on_terminal():
            self._bar = _bar()
            self._bar.add_task(self._what, total=self._total, unit=self._unit, rate="")
            self._bar.start()
        if self._poll is not None:
            self._poller = threading.Thread(target=self._poll_until_exit, name="foreword-progress", daemon=True)
            self._poller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._exited.set()
        if self._poller is not None:
            self._poller.join()
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Add finished units."""
        self.set_completed(self._done + count)

    def set_completed(self, done: int, *, before: bool = False) -> None:
        """Set the number of finished units.

        Args:
            before: they were finished before this run began (a resumed run), and do not count for the rate.
        """
        self._done = min(done, self._total)
        if before:
            self._before = self._done
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, rate=self._rate_text)
        elif time.monotonic() - self._printed >= LINE_INTERVAL:
            self._printed = time.monotonic()
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
        """Units a second; 0 while it is unknown."""
        seconds = time.monotonic() - self._started
        return (self._done - self._before) / seconds if seconds > 0 else 0.0

    @property
    def _rate_text(self) -> str:
        return f"{self._rate:.3g} {self._unit}/s" if self._rate else ""

    def _poll_until_exit(self) -> None:
        assert self._poll is not None
        while not self._exited.wait(POLL_INTERVAL):
            self.set_completed(self._poll())


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
