"""Shell completion of task names, from a local bank and without loading torch."""

from __future__ import annotations

import typer

from foreword.errors import ForewordError
from foreword.home import default_bank


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
