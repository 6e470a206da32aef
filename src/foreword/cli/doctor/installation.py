"""Checks of the installation: versions of Python, required packages and extras."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import TYPE_CHECKING

from foreword.cli.doctor.finding import Finding, State
from foreword.version import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# The extra for development is not checked.
DEVELOPMENT = "dev"


def check_installation() -> list[Finding]:
    """Check Python, every required package, and the extras."""
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
    return [
        _check_python(described["Requires-Python"] or ""),
        *map(_check_package, required),
        *(_check_extra(name, packages) for name, packages in extras.items()),
    ]


def _check_python(wanted: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    version = ".".join(map(str, sys.version_info[:3]))
    if version in SpecifierSet(wanted):
        return Finding("installation", "python", "good", version)
    return Finding("installation", "python", "broken", f"{version}, needs {wanted}", "install another Python")


def _requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """The required packages, and those of each extra, as far as their markers apply to this machine."""
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


def _check_package(need: Requirement) -> Finding:
    state, found = _check_version(need)
    mend = "" if state == "good" else f"pip install '{need.name}{need.specifier}'"
    return Finding("installation", need.name, state, found, mend)


def _check_extra(name: str, needs: list[Requirement]) -> Finding:
    """Check an extra; missing or mismatching packages are a note, since nothing else needs them."""
    states = [_check_version(need) for need in needs]
    found = ", ".join(f"{need.name} {text}" for need, (_, text) in zip(needs, states, strict=True))
    if all(state == "good" for state, _ in states):
        return Finding("installation", f"extra [{name}]", "good", found)
    return Finding("installation", f"extra [{name}]", "note", found, f"if you need it: pip install 'foreword[{name}]'")


def _check_version(need: Requirement) -> tuple[State, str]:
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return "broken", "not installed"
    if need.specifier.contains(version, prereleases=True):
        return "good", version
    return "broken", f"{version}, runs with {need.specifier}"
