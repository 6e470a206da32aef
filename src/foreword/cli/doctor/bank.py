"""The bank: whether it can be read and written, whether every byte is as it was published, and for which models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foreword.cli.doctor.finding import Finding
from foreword.core import ModelIdentity
from foreword.errors import BankError, ModelMismatch
from foreword.progress import Progress

if TYPE_CHECKING:
    from foreword.bank.bank import Bank

# Tasks of other models that are named.
LISTED = 8


def check_bank(bank: Bank, model: ModelIdentity | None) -> list[Finding]:
    """Everything about a bank.

    Args:
        model: identity of the loaded model, if one could be loaded.
    """
    try:
        names = bank.names()
    except BankError as error:
        return [Finding("bank", "reachable", "broken", str(error))]
    findings = [Finding("bank", bank.location, "good", f"{len(names)} tasks"), _writable(bank)]
    with Progress("verifying", len(names), "tasks") as progress:
        for name in names:
            findings += _verified(bank, name)
            progress.advance()
    if model is not None:
        findings += _of_others(bank, names, model)
    return findings


def _writable(bank: Bank) -> Finding:
    try:
        bank.check_writable()
    except BankError as error:
        return Finding("bank", "writable", "broken", str(error))
    return Finding("bank", "writable", "good", "yes")


def _verified(bank: Bank, name: str) -> list[Finding]:
    """One finding a task: whole, or all that is wrong with it."""
    try:
        problems, versions = bank.verify(name), bank.versions(name)
    except BankError as error:
        return [Finding("bank", name, "broken", str(error))]
    if not problems:
        return [Finding("bank", name, "good", f"{len(versions)} versions, every byte as it was published")]
    mend = f"publish it again, or serve a whole version with foreword bank rollback {name}"
    return [Finding("bank", name, "broken", " ".join(problems).rstrip("."), mend)]


def _of_others(bank: Bank, names: list[str], model: ModelIdentity) -> list[Finding]:
    """Tasks that the loaded model cannot answer: nothing is wrong with them, but a user may wonder."""
    others = [name for name in names if not _is_for(bank, name, model)]
    if not others:
        return []
    shown = ", ".join(others[:LISTED]) + (", ..." if len(others) > LISTED else "")
    mend = "load theirs with --model to use them"
    return [Finding("bank", "tasks of other models", "note", f"{len(others)} ({shown})", mend)]


def _is_for(bank: Bank, name: str, model: ModelIdentity) -> bool:
    try:
        ModelIdentity.from_json(bank.describe(name)["model"]).check(model, f"task '{name}'")
    except ModelMismatch:
        return False
    except BankError:  # damaged, and said so already
        return True
    return True
