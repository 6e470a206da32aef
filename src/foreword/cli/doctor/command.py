"""The command ``foreword doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword.cli.doctor.finding import Finding
from foreword.cli.doctor.installation import check_installation
from foreword.cli.doctor.llamacpp import check_llamacpp
from foreword.cli.flags import expand_options
from foreword.cli.options import Json, ModelOptions, emit, quiet_libraries
from foreword.errors import DoctorError, ForewordError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foreword.models import LanguageModel

STATE_STYLES = {"good": ("ok", "green"), "note": ("note", "yellow"), "broken": ("BROKEN", "bold red")}


@expand_options
def doctor(*, options: ModelOptions, json: Json = False) -> None:
    """Check installation, model, bank and engine, and say what to mend.

    The model is proved to carry prefixes, every file of the bank is read, and the engine answers once; with llama.cpp
    installed, a GGUF file runs a prompt on it, too. Fails if something is broken.

    Example: foreword doctor --model ./my-model
    """
    findings = check_installation()
    facts: dict[str, Any] = {}
    lm = None
    if not any(each.state == "broken" for each in findings if each.what in ("torch", "transformers")):
        quiet_libraries()
        from foreword.cli.doctor.threads import check_threads

        findings += check_threads()
        lm, model_findings = _load_and_check(options)
        findings += model_findings
    if lm is not None:
        from foreword.cli.doctor.model import facts as facts_of

        facts = facts_of(lm)
    findings += _check_bank(options, lm)
    if lm is not None:
        from foreword.cli.doctor.engine import check_engine

        findings += check_engine(lm)
    findings += check_llamacpp(options.model_name)
    broken = [each for each in findings if each.state == "broken"]
    if json:
        data = {**facts, "healthy": not broken, "findings": [each.to_json() for each in findings]}
        emit(data, "", json)
    else:
        _print_findings(findings)
    if broken:
        raise DoctorError(f"{len(broken)} of {len(findings)} checks failed: " + "\n  ".join(map(str, broken)))


def _load_and_check(options: ModelOptions) -> tuple[LanguageModel | None, list[Finding]]:
    from foreword.cli.doctor.model import check_model

    try:
        lm = options.open_model()
    except ForewordError as error:
        return None, [Finding("model", options.model_name, "broken", str(error).rstrip("."))]
    return lm, check_model(lm)


def _check_bank(options: ModelOptions, lm: LanguageModel | None) -> list[Finding]:
    from foreword.cli.doctor.bank import check_bank

    try:
        bank = options.open_bank()
    except ForewordError as error:
        return [Finding("bank", "reachable", "broken", str(error).rstrip("."))]
    return check_bank(bank, lm.identity if lm is not None else None)


def _print_findings(findings: Sequence[Finding]) -> None:
    """Print findings by area, with colours on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    area = None
    for each in findings:
        if each.area != area:
            area = each.area
            console.print(Text(area, style="bold"))
        sign, style = STATE_STYLES[each.state]
        console.print(Text.assemble("  ", (f"{sign:7}", style), str(each)), soft_wrap=True)
