"""Shell completion of task names, from a local bank, and of the values of options; without loading torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import typer

from foreword.errors import ForewordError
from foreword.home import default_bank
from foreword.training.recipe import INITS


def complete_task(context: typer.Context, incomplete: str) -> list[str]:
    """Task names that begin with ``incomplete``, from ``--bank`` or the default bank; empty for a remote bank."""
    root = str(context.params.get("bank") or default_bank())
    if "://" in root and not root.startswith(("file://", "local://")):
        return []  # a keystroke must not wait for a network
    from foreword.bank.bank import Bank

    try:
        return [name for name in Bank(root).names() if name.startswith(incomplete)]
    except ForewordError:
        return []


def complete_values(values: Iterable[str]) -> Callable[[str], list[str]]:
    """Completion of an option whose values are known; they are asked for at the keystroke."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def complete_init(context: typer.Context, incomplete: str) -> list[str]:
    """The ways to start, and every task of the bank as ``task:NAME``."""
    ways = [way for way in (*INITS, "task:") if way.startswith(incomplete)]
    if not incomplete.startswith("task:"):
        return ways
    return [f"task:{name}" for name in complete_task(context, incomplete.removeprefix("task:"))]
