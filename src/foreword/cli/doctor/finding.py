"""`Finding`: the result of one check."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Area = Literal["installation", "model", "bank", "engine"]
State = Literal["good", "note", "broken"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        area: group of checks.
        what: name of the check.
        state: ``note`` for something that works and that a user should know; ``broken`` if it does not work.
        found: the result in a few words.
        mend: how to repair it; may be empty.
    """

    area: Area
    what: str
    state: State
    found: str
    mend: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        mend = f"; {self.mend}" if self.mend else ""
        return f"{self.what}: {self.found}{mend}"
