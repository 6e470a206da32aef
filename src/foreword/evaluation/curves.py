"""Training curves as PNG: the loss and every held-out metric over the steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[int, float]]
# Entries of the Transformers Trainer's log that are no metrics.
_NOT_METRICS = ("runtime", "samples_per_second", "steps_per_second", "score")
_COLOURS = {"train": "tab:gray", "held out": "tab:blue"}
_COLUMNS = 3
_PANEL = (4.0, 2.8)  # inches


def write_curves(history: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Plot a run's log as PNG, one panel a metric; training and held-out loss share theirs.

    Args:
        history: the log of the Transformers Trainer (``state.log_history``): every entry has a ``step``, and a ``loss``
            or held-out metrics named ``eval_...``.
        file: replaced as a whole; nothing is written if the log holds no metric.

    Raises:
        UsageError: the file cannot be written.
    """
    panels = _panels(history)
    if not panels:
        return
    figure = _plot(panels)
    partial = file.with_name(f".{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(partial, format="png", dpi=120)
        partial.replace(file)
    except OSError as error:
        raise UsageError(f"the curves {file} cannot be written: {error.strerror}; check the folder.") from error


def _panels(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Points]]:
    """Points of every curve, by panel and by split (``train`` or ``held out``); the loss comes first."""
    panels: dict[str, dict[str, Points]] = defaultdict(lambda: defaultdict(list))
    for entry in history:
        for key, value in entry.items():
            name = key.removeprefix("eval_")
            if key == "loss" or (key != name and name not in _NOT_METRICS):
                panels[name]["train" if key == name else "held out"].append((entry["step"], value))
    return dict(sorted(panels.items(), key=lambda panel: panel[0] != "loss"))


def _plot(panels: Mapping[str, Mapping[str, Points]]) -> Figure:
    # The figure alone, without pyplot: that keeps every figure of the process, and looks for a screen.
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows), layout="constrained")
    for place, (name, curves) in enumerate(panels.items(), 1):
        _plot_panel(figure.add_subplot(rows, columns, place), name, curves)
    return figure


def _plot_panel(axes: Axes, name: str, curves: Mapping[str, Points]) -> None:
    from matplotlib.ticker import MaxNLocator

    for split, points in curves.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=split, color=_COLOURS[split], marker="." if len(points) < 40 else None)
    axes.set_title(name.replace("_", " "), fontsize="medium")
    axes.set_xlabel("step", fontsize="small")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize="small")
