"""`Peer`: somebody whom Foreword is measured beside, in a Python of its own where it needs one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

_LOOK = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Peer:
    """A candidate that is not Foreword itself.

    Attributes:
        key: as in ``--peer``.
        about: what it is and the settings that it runs with.
        needs: packages that its Python must have; none for peers that are a few lines of our own.
        either: packages that are the same thing; one of them must be there, too.
        lives_with: the peer whose Python it shares; empty for one with a Python of its own.
        environment: of its process, unless ours says otherwise.
        beside: engines that it is measured beside; empty for all.
        awaits: the issue that brings it; empty if it can be measured.
    """

    key: str
    about: str
    needs: tuple[str, ...] = ()
    either: tuple[str, ...] = ()
    lives_with: str = ""
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    beside: tuple[str, ...] = ()
    awaits: str = ""

    @property
    def variable(self) -> str:
        """Environment variable that names its Python, for packages that cannot be installed beside ours."""
        return f"FOREWORD_BENCH_{(self.lives_with or self.key).upper()}_PYTHON"

    @property
    def python(self) -> str:
        """The Python that it runs in: ours, unless `variable` names another."""
        return os.environ.get(self.variable) or sys.executable

    def missing(self) -> str | None:
        """Why it cannot be measured, as a sentence; ``None`` if it can."""
        if self.awaits:
            return f"{self.key} is missing: nothing here drives it yet; the issue '{self.awaits}' brings it."
        if self.versions is None:
            return f"{self.key} is missing: {self.python} does not run; correct {self.variable}."
        absent = [name for name in self.needs if self.versions[name] is None]
        if self.either and not any(self.versions[name] for name in self.either):
            absent.append(" or ".join(self.either))
        if not absent:
            return None
        return (
            f"{self.key} is missing: {self.python} has no package {absent[0]}; install it there, or name another "
            f"Python with {self.variable}."
        )

    @cached_property
    def versions(self) -> dict[str, Any] | None:
        """Versions of what it needs, ``None`` for what is absent; ``None`` altogether if its Python does not run."""
        try:
            looking = [self.python, "-c", _LOOK, *self.needs, *self.either]
            done = subprocess.run(looking, capture_output=True, text=True, timeout=60)
            return json.loads(done.stdout) if done.returncode == 0 else None
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None
