"""The nouns of a benchmark: a workload is cut into cells that are measured one by one, and summed up as ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from foreword.bench.peers import Peer
from foreword.bench.record import Record

Json = Mapping[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What a person may change about a run.

    Attributes:
        data: folder of the data sets.
        model: base model.
        peers: the candidates that are measured beside Foreword; all are installed.
        steps: in place of the workload's own number, for a short look.
        limit: rows of every file at most, likewise.
        seed: of data order and initial values.
        engine: what does the work, for workloads that have `Workload.engines`.
    """

    data: Path
    model: str
    peers: tuple[str, ...]
    steps: int | None = None
    limit: int | None = None
    seed: int = 0
    engine: str = "embedded"


@dataclass(frozen=True)
class Cell:
    """A measurement that stands for itself.

    Attributes:
        key: names it within the workload, such as ``sst2/p-tuning-v2``.
        settings: everything that the figures depend on besides machine and versions; JSON values.
        measure: makes the figures; JSON values.
    """

    key: str
    settings: Json
    measure: Callable[[Say], Json]


@dataclass(frozen=True)
class Limit:
    """A goal: ``found`` should be at least ``goal``, or at most.

    Attributes:
        found: ``None`` if it could not be measured, which is not met.
    """

    name: str
    goal: float
    found: float | None
    at_most: bool = False

    @property
    def met(self) -> bool:
        if self.found is None:
            return False
        return self.found <= self.goal if self.at_most else self.found >= self.goal

    def to_json(self) -> dict[str, Any]:
        found = {"at_most" if self.at_most else "at_least": self.goal, "found": self.found, "met": self.met}
        return {"name": self.name, **found}


@dataclass(frozen=True)
class Summary:
    """What the records of a workload come to.

    Attributes:
        ratios: always how many times better Foreword is.
        limits: the goals.
    """

    ratios: Mapping[str, float]
    limits: Sequence[Limit]


class Workload(Protocol):
    """One kind of work that candidates are measured at.

    Attributes:
        name: as in ``foreword bench NAME``.
        about: how it is measured and what is compared, as a paragraph of the docs.
        peers: whom Foreword can be measured beside.
        engines: what ``--engine`` may say, the first one if it says nothing; none for work that no engine does.
        reads_data: whether it needs the folder of the data sets.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    peers: ClassVar[Sequence[Peer]]
    engines: ClassVar[Sequence[str]]
    reads_data: ClassVar[bool]

    def cells(self, options: Options) -> list[Cell]:
        """All measurements, in the order in which they are made."""
        ...

    def summary(self, records: Sequence[Record]) -> Summary:
        """Ratios and goals over what has been measured."""
        ...

    def tables(self, records: Sequence[Record]) -> str:
        """The same for people, in Markdown."""
        ...
