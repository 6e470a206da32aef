"""What went wrong in a run, each in one sentence with what to try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.training.loop.baseline import selection_score
from foreword.training.run import Run

# A loss that ends above this share of where it began has not fallen.
FALLEN = 0.97


def advice(
    run: Run, history: Sequence[Mapping[str, Any]], before: Mapping[str, float], after: Mapping[str, float]
) -> list[str]:
    """Sentences for a person; none if all went well.

    Args:
        history: what the Trainer logged.
        before: figures without anything learned.
        after: figures of the task.
    """
    if not run.learns:
        return []
    said = [_loss(run, history), _majority(run, after), _worse(before, after)]
    return [sentence for sentence in said if sentence is not None]


def _loss(run: Run, history: Sequence[Mapping[str, Any]]) -> str | None:
    losses = [float(entry["loss"]) for entry in history if "loss" in entry]
    if len(losses) < 4:
        return None
    quarter = len(losses) // 4
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    if last <= FALLEN * first:
        return None
    # A search has no learning rate.
    rates = f"--lr {3 * run.lr:.1g} or {run.lr / 3:.1g}, --init auto" if run.method.lr else "--init text"
    fell = f"{first:.3f} at the beginning, {last:.3f} at the end"
    return f"the loss did not fall ({fell}); try {rates}, or more --max-steps."


def _majority(run: Run, after: Mapping[str, float]) -> str | None:
    if not run.material.labels or "accuracy" not in after:
        return None
    held = Counter(place for row in run.material.eval_rows for place in run.material.answers(row))
    label, count = held.most_common(1)[0]
    share = count / held.total()
    if after["accuracy"] >= share:
        return None
    return (
        f"the accuracy {after['accuracy']:.3f} is under the {share:.3f} of always saying "
        f"'{run.material.labels[label]}'; try more --max-steps, another template, or words that the model connects "
        "with the labels."
    )


def _worse(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    if next(iter(after)) not in before or selection_score(after) >= selection_score(before):
        return None
    return "what was learned is worse than nothing; try more rows, more --max-steps or a smaller --lr."
