"""`Finding`: what was found about one thing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Area = Literal["installation", "model", "bank", "engine"]
State = Literal["good", "note", "broken"]


@dataclass(frozen=True)
class Finding:
    """What was found about one thing.

    Attributes:
        area: what it is part of.
        what: was looked at.
        state: ``note`` works and is worth a word; ``broken`` does not work.
        found: in a few words.
        mend: what to do about it; empty if nothing is to be done.
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
