"""`MultiTaskReport`: what a run of many tasks came to, as figures and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import TrainingError
from foreword.training.loop.selection import headline_metric


@dataclass(frozen=True)
class MultiTaskReport:
    """Records of tasks, as `train_many` gives them."""

    records: Sequence[Mapping[str, Any]]

    def of_status(self, status: str) -> list[Mapping[str, Any]]:
        return [record for record in self.records if record["status"] == status]

    @property
    def learned(self) -> list[Mapping[str, Any]]:
        return self.of_status("learned")

    @property
    def metric(self) -> str | None:
        """The figure that tasks are compared by; ``None`` if none was learned."""
        return next(iter(self.learned[0]["metrics"])) if self.learned else None

    @property
    def values(self) -> list[float]:
        """How much better each learned task is than the base model with the same template."""
        return [
            headline_metric(record["metrics"]) - headline_metric(record["metrics_before"]) for record in self.learned
        ]

    @property
    def worse(self) -> list[str]:
        """Tasks that the base model is better at."""
        return [record["task"] for record in self.learned if not record["better"]]

    def to_json(self) -> dict[str, Any]:
        """The summary; lists name tasks, and reasons stand beside those that were not learned."""
        return {
            "n": len(self.records),
            "metric": self.metric,
            "metrics": self._means("metrics"),
            "metrics_before": self._means("metrics_before"),
            "gains": self._spread(),
            "learned": len(self.learned),
            "published": [record["published"] for record in self.learned if record["published"]],
            "base_better": self.worse,
            "left_out": {record["task"]: record["why"] for record in self.of_status("left out")},
            "failed": {record["task"]: record["why"] for record in self.of_status("failed")},
        }

    def draw(self, file: Path) -> None:
        """A histogram as PNG; nothing if nothing was learned. Raises TrainingError if it cannot be written."""
        if not self.learned:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.0, 3.0), layout="constrained")
        axes = figure.add_subplot()
        axes.hist(self.values, bins=min(30, max(5, len(self.values) // 3)), color="tab:blue")
        axes.axvline(0.0, color="tab:gray", linewidth=1)
        axes.set_xlabel(f"gain in {(self.metric or '').replace('_', ' ')} over the base model")
        axes.set_ylabel("tasks")
        partial = file.with_name(f".{file.name}")
        try:
            figure.savefig(partial, format="png", dpi=120)
            partial.replace(file)
        except OSError as error:
            raise TrainingError(f"{file} cannot be written: {error.strerror}; make room, and pass --resume.") from error

    def _means(self, which: str) -> dict[str, float]:
        """Every figure, averaged over the tasks that have it."""
        names = dict.fromkeys(name for record in self.learned for name in record[which])
        found = {name: [record[which][name] for record in self.learned if name in record[which]] for name in names}
        return {name: statistics.fmean(values) for name, values in found.items()}

    def _spread(self) -> dict[str, float]:
        values = sorted(self.values)
        if not values:
            return {}
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if values[1:] else values * 3
        spread = {"mean": statistics.fmean(values), "median": middle, "low": low, "high": high}
        return {**spread, "least": values[0], "most": values[-1]}
