"""Gap closed over the length of the prefix, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foreword.errors import TrainingError
from foreword.training.distillation.report import DistillationReport
from foreword.training.loop.atomic_write import atomic_write


def curve_table(curve: Sequence[DistillationReport]) -> str:
    """A Markdown table with a row for every length."""
    rows = [
        f"| {each.slots} | {each.gap_closed:.3f} | {each.agreement['distilled']:.3f} | {each.f1['distilled']:.3f} | "
        f"{each.bytes['distilled']:,} | {each.bytes_ratio:.1f} |"
        for each in curve
    ]
    return "\n".join(
        ["| slots | gap closed | agreement | F1 | bytes | fewer bytes |", "|---:|---:|---:|---:|---:|---:|", *rows]
    )


def plot_curve(curve: Sequence[DistillationReport], file: Path) -> None:
    """Write a PNG atomically. Raises TrainingError if it cannot be written."""
    # The figure alone, without pyplot: that keeps every figure of the process, and looks for a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    slots = [each.slots for each in curve]
    axes.plot(slots, [each.gap_closed for each in curve], marker="o", label="gap closed")
    axes.plot(slots, [each.agreement["distilled"] for each in curve], marker="o", label="agreement of greedy tokens")
    axes.plot(slots, [each.f1["distilled"] for each in curve], marker="o", label="F1 of answers")
    axes.set_xscale("log", base=2)
    axes.set_xticks(slots, [str(each) for each in slots])
    axes.set_xlabel("virtual tokens")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    try:
        with atomic_write(file) as partial:
            figure.savefig(partial, format="png", dpi=120)
    except OSError as error:
        raise TrainingError(f"the picture {file} cannot be written: {error.strerror}; use another --out.") from error
