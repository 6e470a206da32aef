"""Python, the packages that Foreword needs, and the extras, against the ranges that it was run with."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import TYPE_CHECKING

from foreword.cli.doctor.finding import Finding, State
from foreword.version import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# An extra for people who work on Foreword itself.
DEVELOPMENT = "dev"


def check_installation() -> list[Finding]:
    """Python, then every package in the order of the metadata, then the extras."""
    try:
        described = metadata.metadata("foreword")
    except metadata.PackageNotFoundError:
        return [
            Finding(
                "installation",
                "foreword",
                "note",
                f"{__version__}, not installed as a package, so its needs are unknown",
                "pip install foreword",
            )
        ]
    required, extras = _requirements()
    findings = [_python(described["Requires-Python"] or ""), *(_package(each) for each in required)]
    for name, packages in extras.items():
        findings.append(_extra(name, packages))
    return findings


def _python(wanted: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    version = ".".join(map(str, sys.version_info[:3]))
    if version in SpecifierSet(wanted):
        return Finding("installation", "python", "good", version)
    return Finding("installation", "python", "broken", f"{version}, needs {wanted}", "install another Python")


def _requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """What is needed always, and by extra; without what is not for this machine."""
    from packaging.requirements import Requirement

    required: list[Requirement] = []
    extras: dict[str, list[Requirement]] = {}
    names = [name for name in metadata.metadata("foreword").get_all("Provides-Extra") or [] if name != DEVELOPMENT]
    for text in metadata.requires("foreword") or []:
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            required.append(need)
            continue
        for name in names:
            if need.marker.evaluate({"extra": name}) and need.name != "foreword":
                extras.setdefault(name, []).append(need)
    return required, extras


def _package(need: Requirement) -> Finding:
    state, found = _state(need)
    mend = "" if state == "good" else f"pip install '{need.name}{need.specifier}'"
    return Finding("installation", need.name, state, found, mend)


def _extra(name: str, needs: list[Requirement]) -> Finding:
    """An extra that is not there breaks nothing; one that is there in other versions may not work."""
    states = [_state(need) for need in needs]
    found = ", ".join(f"{need.name} {text}" for need, (_, text) in zip(needs, states, strict=True))
    if all(state == "good" for state, _ in states):
        return Finding("installation", f"extra [{name}]", "good", found)
    return Finding("installation", f"extra [{name}]", "note", found, f"if you need it: pip install 'foreword[{name}]'")


def _state(need: Requirement) -> tuple[State, str]:
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return "broken", "not installed"
    if need.specifier.contains(version, prereleases=True):
        return "good", version
    return "broken", f"{version}, runs with {need.specifier}"
