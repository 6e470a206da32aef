"""``foreword doctor``: look at everything, print what was found, and fail if something is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreword.cli import options
from foreword.cli.doctor.finding import Finding
from foreword.cli.doctor.installation import check_installation
from foreword.cli.doctor.llamacpp import check_llamacpp
from foreword.errors import DoctorError, ForewordError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foreword.models import LanguageModel

SIGNS = {"good": ("ok", "green"), "note": ("note", "yellow"), "broken": ("BROKEN", "bold red")}


def doctor(
    model: options.ModelName = None,
    bank: options.BankRoot = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    json: options.Json = False,
) -> None:
    """Check installation, model, bank and engine, and say what to mend.

    The model is proved to carry prefixes, every file of the bank is read, and the engine answers once; with llama.cpp
    installed, a GGUF file runs a prompt on it, too. Fails if something is broken.

    Example: foreword doctor --model ./my-model
    """
    findings = check_installation()
    facts: dict[str, Any] = {}
    lm = None
    if not any(each.state == "broken" for each in findings if each.what in ("torch", "transformers")):
        options.quiet_libraries()
        from foreword.cli.doctor.threads import check_threads

        findings += check_threads()
        lm, about = _loaded(model, dtype, device, trust_remote_code)
        findings += about
    if lm is not None:
        from foreword.cli.doctor.model import facts as facts_of

        facts = facts_of(lm)
    findings += _bank(bank, lm)
    if lm is not None:
        from foreword.cli.doctor.engine import check_engine

        findings += check_engine(lm)
    findings += check_llamacpp(model or options.default_model())
    broken = [each for each in findings if each.state == "broken"]
    if json:
        data = {**facts, "healthy": not broken, "findings": [each.to_json() for each in findings]}
        options.emit(data, "", json)
    else:
        _show(findings)
    if broken:
        raise DoctorError(f"{len(broken)} of {len(findings)} checks failed: " + "\n  ".join(map(str, broken)))


def _loaded(name: str | None, dtype: str, device: str, code: bool) -> tuple[LanguageModel | None, list[Finding]]:
    from foreword.cli.doctor.model import check_model

    try:
        lm = options.open_model(name, dtype, device, code)
    except ForewordError as error:
        return None, [Finding("model", name or options.default_model(), "broken", str(error).rstrip("."))]
    return lm, check_model(lm)


def _bank(root: str | None, lm: LanguageModel | None) -> list[Finding]:
    from foreword.cli.doctor.bank import check_bank

    try:
        bank = options.open_bank(root)
    except ForewordError as error:
        return [Finding("bank", "reachable", "broken", str(error).rstrip("."))]
    return check_bank(bank, lm.identity if lm is not None else None)


def _show(findings: Sequence[Finding]) -> None:
    """By area, with colours on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    area = None
    for each in findings:
        if each.area != area:
            area = each.area
            console.print(Text(area, style="bold"))
        sign, style = SIGNS[each.state]
        console.print(Text.assemble("  ", (f"{sign:7}", style), str(each)), soft_wrap=True)
