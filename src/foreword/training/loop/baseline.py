"""Metrics that a trained prompt is compared with: those of the model without a prompt, and of a constant answer."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

from foreword.engine.protocol import EngineProtocol
from foreword.evaluation.metrics import label_set_metrics, regression_metrics
from foreword.progress import Say
from foreword.training.data.training_data import TrainingData
from foreword.training.loop.selection import evaluate_task, format_metrics, prepared, selection_score
from foreword.training.run import Run


def baseline_metrics(run: Run, engine: EngineProtocol, say: Say) -> dict[str, float]:
    """Metrics without a prompt, of the best template; for a head, which answers nothing untrained, of always giving the
    same answer. Those of every template are printed."""
    if run.data.head_labels:
        metrics, what = constant_metrics(run.data)
        say(f"always {what}: {format_metrics(metrics)} on {len(run.data.eval_rows)} rows")
        return metrics
    metrics = []
    for task in run.data.plain_tasks(run.task("run")):
        report = evaluate_task(run, engine, prepared(run, engine, task))
        which = f" ({task.template!r})" if len(run.data.templates) > 1 else ""
        say(f"without a prefix{which}: {format_metrics(report.metrics)} on {report.n} rows")
        metrics.append(report.metrics)
    return max(metrics, key=selection_score)


def constant_metrics(data: TrainingData) -> tuple[dict[str, float], str]:
    """Metrics on the evaluation rows of always giving the answer that fits the training rows best, and that answer in
    words: the most frequent label, the labels that most rows have, or the mean number."""
    if data.problem_type == "regression":
        mean = fmean(data.number(row) for row in data.train_rows)
        numbers = [data.number(row) for row in data.eval_rows]
        return regression_metrics([mean] * len(numbers), numbers), f"the mean {mean:.3g}"
    counts = Counter(label_id for row in data.train_rows for label_id in data.label_ids(row))
    if data.problem_type == "multi_label_classification":
        usual = [label for i, label in enumerate(data.labels) if 2 * counts[i] >= len(data.train_rows)]
        sets = [[data.labels[i] for i in data.label_ids(row)] for row in data.eval_rows]
        what = f"the labels of most rows ({', '.join(usual) or 'none'})"
        return label_set_metrics([usual] * len(sets), sets, data.labels), what
    majority, _ = counts.most_common(1)[0]
    eval_ids = [label_id for row in data.eval_rows for label_id in data.label_ids(row)]
    return {"accuracy": eval_ids.count(majority) / len(eval_ids)}, "the most frequent label"
