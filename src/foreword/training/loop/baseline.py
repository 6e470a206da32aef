"""Metrics that a trained prompt is compared with: those of the model without a prompt, and of the majority label."""

from __future__ import annotations

from collections import Counter

from foreword.engine.protocol import EngineProtocol
from foreword.progress import Say
from foreword.training.data.training_data import TrainingData
from foreword.training.loop.selection import evaluate_task, format_metrics, prepared, selection_score
from foreword.training.run import Run


def baseline_metrics(run: Run, engine: EngineProtocol, say: Say) -> dict[str, float]:
    """Metrics without a prompt, of the best template; for a head, which answers nothing untrained, of the most
    frequent label. Those of every template are printed."""
    if run.data.head_labels:
        share = majority_share(run.data)
        say(f"always the most frequent label: accuracy {share:.3f} on {len(run.data.eval_rows)} rows")
        return {"accuracy": share}
    metrics = []
    for task in run.data.plain_tasks(run.task("run")):
        report = evaluate_task(run, engine, prepared(run, engine, task))
        which = f" ({task.template!r})" if len(run.data.templates) > 1 else ""
        say(f"without a prefix{which}: {format_metrics(report.metrics)} on {report.n} rows")
        metrics.append(report.metrics)
    return max(metrics, key=selection_score)


def majority_share(data: TrainingData) -> float:
    """Accuracy on the evaluation rows of always giving the most frequent label of the training rows."""
    counts = Counter(label_id for row in data.train_rows for label_id in data.label_ids(row))
    majority, _ = counts.most_common(1)[0]
    eval_ids = [label_id for row in data.eval_rows for label_id in data.label_ids(row)]
    return eval_ids.count(majority) / len(eval_ids)
