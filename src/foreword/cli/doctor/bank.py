"""Checks of the bank: read and write access, the digests of every file, and the models of its tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foreword.cli.doctor.finding import Finding
from foreword.core import ModelIdentity
from foreword.errors import BankError, ModelMismatch
from foreword.progress import Progress

if TYPE_CHECKING:
    from foreword.bank.bank import Bank

# Tasks of other models that are named, at most.
MAX_LISTED = 8


def check_bank(bank: Bank, model: ModelIdentity | None) -> list[Finding]:
    """Check access, every version of every task, and which tasks are for other models.

    Args:
        model: identity of the loaded model; ``None`` if it could not be loaded.
    """
    try:
        names = bank.names()
    except BankError as error:
        return [Finding("bank", "reachable", "broken", str(error))]
    findings = [Finding("bank", bank.location, "good", f"{len(names)} tasks"), _check_access(bank)]
    with Progress("verifying", len(names), "tasks") as progress:
        for name in names:
            findings.append(_verify_task(bank, name))
            progress.advance()
    if model is not None:
        findings += _note_other_models(bank, names, model)
    return findings


def _check_access(bank: Bank) -> Finding:
    try:
        bank.check_writable()
    except BankError as error:
        return Finding("bank", "writable", "broken", str(error))
    return Finding("bank", "writable", "good", "yes")


def _verify_task(bank: Bank, name: str) -> Finding:
    """Check the files of all versions of a task."""
    try:
        problems, versions = bank.verify(name), bank.versions(name)
    except BankError as error:
        return Finding("bank", name, "broken", str(error))
    if not problems:
        return Finding("bank", name, "good", f"{len(versions)} versions, every byte as it was published")
    mend = f"publish it again, or serve a whole version with foreword bank rollback {name}"
    return Finding("bank", name, "broken", " ".join(problems).rstrip("."), mend)


def _note_other_models(bank: Bank, names: list[str], model: ModelIdentity) -> list[Finding]:
    """A note about the tasks of other models, which the loaded one cannot run; empty if there are none."""
    others = [name for name in names if not _is_for(bank, name, model)]
    if not others:
        return []
    shown = ", ".join(others[:MAX_LISTED]) + (", ..." if len(others) > MAX_LISTED else "")
    mend = "load theirs with --model to use them"
    return [Finding("bank", "tasks of other models", "note", f"{len(others)} ({shown})", mend)]


def _is_for(bank: Bank, name: str, model: ModelIdentity) -> bool:
    try:
        ModelIdentity.from_json(bank.describe(name)["model"]).check(model, f"task '{name}'")
    except ModelMismatch:
        return False
    except BankError:  # reported by `_verify_task`
        pass
    return True
