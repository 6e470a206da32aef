"""Write requirements.lock: what `make setup` installed for Foreword and its extras, and that needs, in these versions.

Run by ``make lock`` once the tests passed with them; `make sbom` and `make audit` read it.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

EXTRAS = ("data", "eval", "search", "ui")
HEAD = "# Written by `make lock`: Foreword's dependencies, in the versions that its tests passed with.\n"


def pins() -> dict[str, str]:
    """Public versions by name of all that Foreword needs here, with the extras that are asked for of each."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [("foreword", extra) for extra in ("", *EXTRAS)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        installed = distribution(name)
        found[name] = Version(installed.version).public
        for line in installed.requires or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(need.name), each) for each in ("", *need.extras)]
    return {name: version for name, version in sorted(found.items()) if name != "foreword"}


if __name__ == "__main__":
    lines = [f"{name}=={version}\n" for name, version in pins().items()]
    Path("requirements.lock").write_text(HEAD + "".join(lines), encoding="utf-8")
    print(f"requirements.lock: {len(lines)} packages")
