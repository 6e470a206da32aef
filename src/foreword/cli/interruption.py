"""Ctrl-C: every command ends with one sentence that says what was kept and how to go on, and exit status 130."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup

from foreword.errors import ForewordError, Interrupted

if TYPE_CHECKING:
    from foreword.bank.bank import Bank


@contextmanager
def on_interrupt(how: Callable[[], str]) -> Iterator[None]:
    """If this block is interrupted, end with a sentence that says what was kept and how to go on.

    Args:
        how: that sentence without "stopped;" and the full stop; called after the interruption.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {how()}") from None


@contextmanager
def on_interrupted_publish(bank: Bank, name: str) -> Iterator[None]:
    """Say whether a task was published if the work in this block is interrupted."""
    before = current_version(bank, name)

    def left() -> str:
        now = current_version(bank, name)
        if now != before:
            return f"{name}@{now} was published"
        return f"nothing was published; start again: {command_line()}"

    with on_interrupt(left):
        yield


def command_line(*flags: str) -> str:
    """The command as it was typed, with these flags unless they are there already.

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
    """The version that is served; ``None`` if there is none, or none that can be read."""
    try:
        return bank.current(name)
    except ForewordError:
        return None


class InterruptibleGroup(TyperGroup):
    """Turns Ctrl-C into one of our own errors, before Typer makes an end without a word of it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("stopped.") from None
