"""`Workload`, its cases, options and summary: a workload is measured case by case and summed up as ratios and goals.

Participants take turns, and a ratio is taken within every turn: what disturbs a turn mostly cancels in its ratio.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from foreword.bench.participants import EMBEDDED, ENGINES, OURS, Peer
from foreword.bench.record import Record

Log = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """Options of a run, from the command line; ``steps`` and ``limit`` (of rows) make a short one."""

    data: Path
    model: str
    peers: tuple[str, ...]
    steps: int | None = None
    limit: int | None = None
    seed: int = 0
    engine: str = EMBEDDED

    def case(self, key: str, measure: Measure, **own: Any) -> Case:
        """A case with its own settings and those that all have: peers, model, seed and the engine's."""
        shared = {"peers": list(self.peers), "model": self.model, "seed": self.seed}
        return Case(key_of(self.engine, key), {**shared, **own, **ENGINES[self.engine].record()}, measure)


Measure = Callable[[Options, Mapping[str, Any], Log], Mapping[str, Any]]
"""``(options, settings of the case, log) -> metrics``, which are JSON values."""


@dataclass(frozen=True)
class Case:
    """One measurement, which gets a record; its metrics depend on nothing but the settings, machine and versions."""

    key: str
    settings: Mapping[str, Any]
    measure: Measure


@dataclass(frozen=True)
class Goal:
    """A target for the figure ``<case>/<figure>``: to be reached, or with ``at_most`` not to be exceeded.

    A ``value`` of ``None`` was not measured, and is not met.
    """

    name: str
    target: float
    at_most: bool = False
    value: float | None = None

    @property
    def met(self) -> bool:
        sign = -1 if self.at_most else 1
        return self.value is not None and sign * self.value >= sign * self.target

    def to_json(self) -> dict[str, Any]:
        bound = {"at_most" if self.at_most else "at_least": self.target}
        return {"name": self.name, **bound, "found": self.value, "met": self.met}


@dataclass(frozen=True)
class Summary:
    """Ratios and goals over all records of a workload; a ratio says how many times better Foreword is."""

    ratios: Mapping[str, float]
    goals: Sequence[Goal]


class Workload(ABC):
    """One kind of work that participants are measured at: ``foreword bench NAME``."""

    name: ClassVar[str]
    peers: ClassVar[Sequence[Peer]] = ()
    engines: ClassVar[Sequence[str]] = ()  # the first one by default; none for work that no engine does
    reads_data: ClassVar[bool] = True  # from the folder of data sets

    @abstractmethod
    def cases(self, options: Options) -> list[Case]:
        """All measurements, in the order in which they are made."""

    def goals(self, engine: str) -> Sequence[Goal]:
        """Goals of an engine, without values; cases are named without their engine."""
        return ()

    def ratios(self, records: Sequence[Record]) -> dict[str, float]:
        """Every ratio of the records by ``<case>/<peer>``."""
        return dict(pair for record in records for pair in numbers(record.metrics.get("ratios", {}), record.key))

    def values(self, records: Sequence[Record]) -> dict[str, float]:
        """Figures that goals are about, besides ratios."""
        return dict(pair for record in records for pair in numbers(record.metrics, record.key))

    def summary(self, records: Sequence[Record]) -> Summary:
        ratios = self.ratios(records)
        values, engines = self.values(records) | ratios, by_engine(records) or (EMBEDDED,)
        goals = [replace(goal, name=key_of(each, goal.name)) for each in engines for goal in self.goals(each)]
        return Summary(ratios, [replace(goal, value=values.get(goal.name)) for goal in goals])

    def peers_beside(self, engine: str) -> list[Peer]:
        return [peer for peer in self.peers if not peer.beside or engine in peer.beside]


def key_of(engine: str, name: str) -> str:
    """The key of a case; those of the embedded engine go without its name."""
    return name if engine == EMBEDDED else f"{engine}/{name}"


def by_engine(records: Iterable[Record]) -> dict[str, dict[str, Record]]:
    """Records by engine, then by the name that `key_of` was given; engines without records are left out."""
    found: dict[str, dict[str, Record]] = {engine: {} for engine in ENGINES}
    for record in records:
        first, slash, rest = record.key.partition("/")
        engine, name = (first, rest) if slash and first in ENGINES else (EMBEDDED, record.key)
        found[engine][name] = record
    return {engine: own for engine, own in found.items() if own}


def numbers(metrics: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """Every number of nested metrics with its name below ``prefix``; of a spread the median alone."""
    for name, value in metrics.items():
        key = f"{prefix}/{name}"
        if isinstance(value, Mapping):
            yield from [(key, value["median"])] if "median" in value else numbers(value, key)
        elif isinstance(value, int | float):
            yield key, value


def spread(values: Sequence[float]) -> dict[str, float]:
    """``median`` of a figure that was taken several times, and the quartiles around it, ``low`` and ``high``."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {name: round(quartiles[at], 6) for name, at in (("median", 1), ("low", 0), ("high", 2))}


def interleaved(names: Sequence[str], rounds: int, measure: Callable[[str, int], float]) -> dict[str, list[float]]:
    """Figures of participants that take turns: A B C, A B C, ...

    Args:
        rounds: turns that count; one more comes first as a warm-up.
        measure: ``(name, turn) -> figure``; turn 0 is the warm-up.
    """
    figures = [{name: measure(name, turn) for name in names} for turn in range(rounds + 1)]
    return {name: [each[name] for each in figures[1:]] for name in names}


def times_better(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Spread of ``theirs / ours``, turn by turn: how many times lower our cost (seconds, bytes) is."""
    return spread([other / own for own, other in zip(ours, theirs, strict=True)])


def compared(seconds: Mapping[str, Sequence[float]], log: Callable[[str], None]) -> dict[str, Any]:
    """``runs`` with the seconds of every participant, and ``ratios``: how many times faster we are than each other."""
    runs = {name: {"seconds": spread(figures)} for name, figures in seconds.items()}
    for name, run in runs.items():
        log(f"  {name}: {run['seconds']['median'] * 1e3:.4g} ms")
    return {"runs": runs, "ratios": {name: times_better(seconds[OURS], seconds[name]) for name in runs if name != OURS}}
