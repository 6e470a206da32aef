"""What the shell completes: names of tasks, read from the bank on this machine without loading anything large."""

from __future__ import annotations

import typer

from foreword.errors import ForewordError
from foreword.home import default_bank


def complete_task(context: typer.Context, incomplete: str) -> list[str]:
    """Tasks of the bank that the line names, else of the default one; none of a bank that is far away."""
    root = str(context.params.get("bank") or default_bank())
    if "://" in root and not root.startswith(("file://", "local://")):
        return []  # a keystroke must not wait for a network
    from foreword.bank.bank import Bank

    try:
        return [name for name in Bank(root).names() if name.startswith(incomplete)]
    except ForewordError:
        return []
