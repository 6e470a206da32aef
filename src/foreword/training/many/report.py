"""`MultiTaskReport`: gains of all tasks over the base model, as a summary and as a histogram."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.core.overview import Overview, WithOverview, join_some, metrics_line
from foreword.errors import TrainingError
from foreword.training.loop.atomic_write import atomic_write
from foreword.training.loop.selection import headline_metric


@dataclass(frozen=True, repr=False)
class MultiTaskReport(WithOverview):
    """Overview of a multi-task run.

    Attributes:
        records: of all tasks, as `train_many` returns them.
    """

    records: Sequence[Mapping[str, Any]]

    def overview(self) -> Overview:
        """How many tasks were learned and published, and their mean metrics before and after."""
        found = self.to_json()
        return Overview(
            f"MultiTaskReport of {len(self.records)} tasks",
            {
                "learned": found["learned"],
                "published": join_some(found["published"]),
                "metrics": metrics_line(found["metrics"], found["metrics_before"]),
                "base is better": join_some(found["base_better"]),
                "left out": join_some(list(found["left_out"])),
                "failed": join_some(list(found["failed"])),
            },
        )

    def with_status(self, status: str) -> list[Mapping[str, Any]]:
        return [record for record in self.records if record["status"] == status]

    @property
    def learned(self) -> list[Mapping[str, Any]]:
        return self.with_status("learned")

    @property
    def metric(self) -> str | None:
        """The first metric, which tasks are compared by; ``None`` if no task was learned."""
        return next(iter(self.learned[0]["metrics"])) if self.learned else None

    @property
    def gains(self) -> list[float]:
        """Of each learned task, its metric minus that of the base model with the same template."""
        return [
            headline_metric(record["metrics"]) - headline_metric(record["metrics_before"]) for record in self.learned
        ]

    @property
    def base_better(self) -> list[str]:
        """Names of tasks that the base model is better at."""
        return [record["task"] for record in self.learned if not record["better"]]

    def to_json(self) -> dict[str, Any]:
        """The content of ``summary.json``; ``left_out`` and ``failed`` give a reason for each task."""
        return {
            "n": len(self.records),
            "metric": self.metric,
            "metrics": self._means("metrics"),
            "metrics_before": self._means("metrics_before"),
            "gains": self._gain_quantiles(),
            "learned": len(self.learned),
            "published": [record["published"] for record in self.learned if record["published"]],
            "base_better": self.base_better,
            "left_out": {record["task"]: record["why"] for record in self.with_status("left out")},
            "failed": {record["task"]: record["why"] for record in self.with_status("failed")},
        }

    def plot(self, file: Path) -> None:
        """Write a histogram of gains as PNG, if any task was learned. Raises TrainingError if it cannot be written."""
        if not self.learned:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.0, 3.0), layout="constrained")
        axes = figure.add_subplot()
        axes.hist(self.gains, bins=min(30, max(5, len(self.gains) // 3)), color="tab:blue")
        axes.axvline(0.0, color="tab:gray", linewidth=1)
        axes.set_xlabel(f"gain in {(self.metric or '').replace('_', ' ')} over the base model")
        axes.set_ylabel("tasks")
        try:
            with atomic_write(file) as partial:
                figure.savefig(partial, format="png", dpi=120)
        except OSError as error:
            raise TrainingError(f"{file} cannot be written: {error.strerror}; make room, and pass --resume.") from error

    def _means(self, which: str) -> dict[str, float]:
        """Every metric, averaged over the tasks that have it."""
        values: dict[str, list[float]] = {}
        for record in self.learned:
            for name, value in record[which].items():
                values.setdefault(name, []).append(value)
        return {name: statistics.fmean(each) for name, each in values.items()}

    def _gain_quantiles(self) -> dict[str, float]:
        gains = sorted(self.gains)
        if not gains:
            return {}
        low, median, high = statistics.quantiles(gains, n=4, method="inclusive") if gains[1:] else gains * 3
        quartiles = {"mean": statistics.fmean(gains), "median": median, "low": low, "high": high}
        return {**quartiles, "least": gains[0], "most": gains[-1]}
