"""`WorkloadReport`: a workload that has a section in the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from foreword.bench.participants import EMBEDDED
from foreword.bench.record import Record
from foreword.bench.workload import Workload, by_engine


class WorkloadReport(Workload):
    """A workload with its description and its tables, in Markdown.

    Attributes:
        about: how it is measured and what is compared, as a paragraph.
    """

    about: ClassVar[str]

    def table(self, records: Mapping[str, Record]) -> str:
        """What was measured of one engine, by the name of the case."""
        raise NotImplementedError

    def tables(self, records: Sequence[Record]) -> str:
        """A table for every engine, under each other; that of the embedded one needs no heading."""
        tables = {engine: self.table(measured) for engine, measured in by_engine(records).items()}
        headings = {engine: "" if engine == EMBEDDED else f"With `--engine {engine}`:\n\n" for engine in tables}
        return "\n\n".join(headings[engine] + text for engine, text in tables.items())
