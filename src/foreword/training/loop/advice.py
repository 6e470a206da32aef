"""Advice after a run that went wrong: a sentence for each problem, with what to try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.training.loop.selection import selection_score
from foreword.training.run import Run

# A loss that ends above this share of where it began has not fallen.
MAX_LOSS_RATIO = 0.97


def advice(
    run: Run, history: Sequence[Mapping[str, Any]], before: Mapping[str, float], after: Mapping[str, float]
) -> list[str]:
    """Sentences about problems of a run; empty if there are none.

    Args:
        history: the Trainer's log.
        before: metrics of the baseline.
        after: metrics of the trained task.
    """
    if not run.learns:
        return []
    sentences = [_loss_not_falling(run, history), _below_majority(run, after), _below_baseline(before, after)]
    return [sentence for sentence in sentences if sentence is not None]


def _loss_not_falling(run: Run, history: Sequence[Mapping[str, Any]]) -> str | None:
    losses = [float(entry["loss"]) for entry in history if "loss" in entry]
    if len(losses) < 4:
        return None
    quarter = len(losses) // 4
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    if last <= MAX_LOSS_RATIO * first:
        return None
    # A search has no learning rate.
    rates = f"--lr {3 * run.lr:.1g} or {run.lr / 3:.1g}, --init auto" if run.method.lr else "--init text"
    fell = f"{first:.3f} at the beginning, {last:.3f} at the end"
    return f"the loss did not fall ({fell}); try {rates}, or more --max-steps."


def _below_majority(run: Run, after: Mapping[str, float]) -> str | None:
    if not run.data.labels or "accuracy" not in after:
        return None
    counts = Counter(label_id for row in run.data.eval_rows for label_id in run.data.label_ids(row))
    label, count = counts.most_common(1)[0]
    share = count / counts.total()
    if after["accuracy"] >= share:
        return None
    return (
        f"the accuracy {after['accuracy']:.3f} is under the {share:.3f} of always saying "
        f"'{run.data.labels[label]}'; try more --max-steps, another template, or words that the model connects "
        "with the labels."
    )


def _below_baseline(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    if next(iter(after)) not in before or selection_score(after) >= selection_score(before):
        return None
    return "what was learned is worse than nothing; try more rows, more --max-steps or a smaller --lr."
