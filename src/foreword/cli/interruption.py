"""Ctrl-C and SIGTERM: a command ends with exit status 130 and a sentence that says what was kept and how to resume."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup

from foreword.errors import ForewordError, Interrupted

if TYPE_CHECKING:
    from foreword.bank.bank import Bank


@contextmanager
def on_interrupt(hint: Callable[[], str]) -> Iterator[None]:
    """Turn a KeyboardInterrupt in this block into `Interrupted`, and SIGTERM into what Ctrl-C does.

    Args:
        hint: returns what was kept and how to resume, a clause behind "stopped;"; called after the interruption.
    """
    own = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT)) if own else None
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {hint()}") from None
    finally:
        if own:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def on_interrupted_publish(bank: Bank, name: str) -> Iterator[None]:
    """`on_interrupt` with a hint that says whether this block published a new version of a task."""
    before = current_version(bank, name)

    def hint() -> str:
        now = current_version(bank, name)
        if now != before:
            return f"{name}@{now} was published"
        return f"nothing was published; start again: {command_line()}"

    with on_interrupt(hint):
        yield


def command_line(*flags: str) -> str:
    """The command as it was typed, with flags added unless they are in it.

    Args:
        flags: each a flag, or a flag and its value.
    """
    typed = ["foreword", *sys.argv[1:]]
    given = {word.partition("=")[0] for word in typed}
    added: list[str] = []
    known = False
    for word in flags:
        if word.startswith("--"):
            known = word in given
        added += [] if known else [word]
    return shlex.join([*typed, *added])


def current_version(bank: Bank, name: str) -> str | None:
    """The version of a task that is served; ``None`` if there is none or it cannot be read."""
    try:
        return bank.current(name)
    except ForewordError:
        return None


class InterruptibleGroup(TyperGroup):
    """A Typer group that raises `Interrupted` on Ctrl-C; Typer itself would exit without a message."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("stopped.") from None
