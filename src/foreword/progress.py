"""`Progress`: a progress bar on stderr where that is a terminal, and elsewhere a line every few seconds."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

Say = Callable[[str], None]
"""Prints a line about a run, such as `print` or `click.echo`."""

# Seconds without a line after which one is printed, where there is no terminal.
LINE_INTERVAL = 4.0
# Seconds between two looks at ``poll`` and at the clock.
POLL_INTERVAL = 0.25


def on_terminal() -> bool:
    """Whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class Progress:
    """Progress bar of one piece of work, with rate and remaining time; a context manager.

    Work inside other work is a second line below its bar. Where there is no terminal, the innermost work prints a line
    every `LINE_INTERVAL` seconds, also while nothing advances, so that no work is silent; quick work prints nothing.

    Args:
        what: the work, such as ``evaluating``.
        total: number of units; ``None`` where it is not known, for which the seconds are shown.
        unit: their name, such as ``rows``.
        poll: number of finished units, called every `POLL_INTERVAL` seconds; for work that does not call `advance`.
    """

    _open: ClassVar[list[Progress]] = []
    _printed: ClassVar[float] = 0.0
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self, what: str, total: int | None = None, unit: str = "", poll: Callable[[], int] | None = None
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._poll = poll
        self._done, self._before = 0, 0
        self._started = time.monotonic()
        self._bar: Bar | None = None
        self._row: TaskID | None = None
        self._exited = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self._started = Progress._printed = time.monotonic()
        outer = Progress._open[-1] if Progress._open else None
        Progress._open.append(self)
        if on_terminal():
            self._bar = outer._bar if outer is not None and outer._bar is not None else _bar()
            self._row = self._bar.add_task(self._what, total=self._total, count=self._count, unit=self._unit, rate="")
            self._bar.start()
        if self._poll is not None or self._bar is None:
            self._watcher = threading.Thread(target=self._watch, name="foreword-progress", daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._exited.is_set():
            return
        self._exited.set()
        if self._watcher is not None:
            self._watcher.join()
        if self in Progress._open:
            Progress._open.remove(self)
        if self._bar is None or self._row is None:
            return
        inner = any(other._bar is self._bar for other in Progress._open)
        if inner or self._total is None:
            self._bar.remove_task(self._row)
        if not inner:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Add finished units."""
        self.set_completed(self._done + count)

    def set_completed(self, done: int, *, before: bool = False) -> None:
        """Set the number of finished units.

        Args:
            before: they were finished before this run began (a resumed run), and do not count for the rate.
        """
        self._done = done if self._total is None else min(done, self._total)
        if before:
            self._before = self._done
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, completed=self._done, count=self._count, rate=self._rate_text)
        else:
            self._print_if_due()

    def __str__(self) -> str:
        """Such as ``evaluating: 120/872 rows, 14.2 rows/s, 53 s left``, or ``loading: 5 s``."""
        if self._total is None:
            return f"{self._what}: {_duration(time.monotonic() - self._started)}"
        parts = [f"{self._what}: {self._count} {self._unit}", self._rate_text]
        rate = self._rate
        if rate:
            parts.append(f"{_duration((self._total - self._done) / rate)} left")
        return ", ".join(filter(None, parts))

    @property
    def _count(self) -> str:
        return f"{self._done}/{self._total}" if self._total is not None else ""

    @property
    def _rate(self) -> float:
        """Units a second; 0 while it is unknown."""
        seconds = time.monotonic() - self._started
        return (self._done - self._before) / seconds if seconds > 0 else 0.0

    @property
    def _rate_text(self) -> str:
        return f"{self._rate:.3g} {self._unit}/s" if self._rate else ""

    def _watch(self) -> None:
        while not self._exited.wait(POLL_INTERVAL):
            if self._poll is not None:
                self.set_completed(self._poll())
            if self._bar is None:
                self._print_if_due()

    def _print_if_due(self) -> None:
        with Progress._lock:
            if Progress._open[-1:] == [self] and time.monotonic() - Progress._printed >= LINE_INTERVAL:
                Progress._printed = time.monotonic()
                print(self, file=sys.stderr, flush=True)


def _bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
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
