"""`write_plots`: the trials of a search as a PNG: scores over the steps, and best scores by every searched key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.errors import UsageError
from foreword.training.search.trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_SIZE = (4.0, 3.0)  # inches
_COLUMNS = 3
_COLOURS = {"complete": "tab:blue", "dropped": "tab:gray", "failed": "tab:red", "learning": "tab:gray"}


def write_plots(trials: Sequence[Trial], winner: Trial, file: Path) -> None:
    """Draw as PNG; trials that were never evaluated are left out. Raises UsageError if it cannot be written."""
    # The figure alone, without pyplot: that keeps every figure of the process, and looks for a screen.
    from matplotlib.figure import Figure

    evaluated = [trial for trial in trials if trial.evaluations]
    keys = list(winner.params)
    columns = min(_COLUMNS, 1 + len(keys))
    rows = -(-(1 + len(keys)) // columns)
    figure = Figure(figsize=(_PANEL_SIZE[0] * columns, _PANEL_SIZE[1] * rows), layout="constrained")
    _plot_over_steps(figure.add_subplot(rows, columns, 1), evaluated, winner)
    for position, key in enumerate(keys, 2):
        _plot_by_key(figure.add_subplot(rows, columns, position), evaluated, winner, key)
    try:
        figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise UsageError(f"the picture {file} cannot be written: {error.strerror}; check the folder.") from error


def _plot_over_steps(axes: Axes, trials: Sequence[Trial], winner: Trial) -> None:
    for trial in sorted(trials, key=lambda trial: trial is winner):
        steps = [each["step"] for each in trial.evaluations]
        scores = [each["score"] for each in trial.evaluations]
        style = {"linewidth": 2.5, "color": "tab:orange", "label": "winner"} if trial is winner else {"linewidth": 1}
        axes.plot(steps, scores, **{"color": _COLOURS[trial.state], "marker": ".", **style})  # type: ignore[arg-type] - options of a line
    axes.set_title("score of every trial", fontsize="medium")
    axes.set_xlabel("step", fontsize="small")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _plot_by_key(axes: Axes, trials: Sequence[Trial], winner: Trial, key: str) -> None:
    """Best scores over one key; dropped trials had fewer steps to get better."""
    values = [trial.params[key] for trial in trials]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    positions: list[Any] = values if numeric else [str(value) for value in values]
    for trial, position in zip(trials, positions, strict=True):
        colour = "tab:orange" if trial is winner else _COLOURS[trial.state]
        axes.scatter(
            [position],
            [max(each["score"] for each in trial.evaluations)],
            color=colour,
            marker="x" if trial.state == "dropped" else "o",
        )
    if numeric and min(values) > 0 and max(values) >= 10 * min(values):
        axes.set_xscale("log")
    axes.set_title(f"best score by {key}", fontsize="medium")
    axes.set_xlabel(f"{key} (x: dropped)", fontsize="small")
    axes.grid(alpha=0.3)
