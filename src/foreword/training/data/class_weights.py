"""Class weights of the cross-entropy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreword.core.json_reader import parse_json, read_document
from foreword.errors import SettingError, UsageError
from foreword.training.data.training_data import TrainingData
from foreword.training.recipe import Recipe


def class_weights(recipe: Recipe, data: TrainingData) -> Mapping[str, float] | None:
    """The weight of every label in the loss, ``None`` if all weigh the same.

    ``balanced``: inversely proportional to class frequencies, as scikit-learn's ``class_weight="balanced"``. Where a
    row may have several labels a weight is that of the rows that have the label (PyTorch's ``pos_weight``), and
    ``balanced`` gives them as much weight as the rows without.

    Raises UsageError for unknown labels, or weights that are no positive numbers.
    """
    if recipe.class_weights is None:
        return None
    labels = data.labels
    if not labels:
        raise SettingError("class_weights", "--class-weights is for labels, and this run generates text; leave it out.")
    if data.problem_type == "regression":
        raise SettingError("class_weights", "--class-weights is for labels, and this run learns a number.")
    if recipe.class_weights == "balanced" and data.problem_type == "multi_label_classification":
        counts = Counter(label_id for row in data.train_rows for label_id in data.label_ids(row))
        rows = len(data.train_rows)
        return {label: max(1, rows - counts[i]) / max(1, counts[i]) for i, label in enumerate(labels)}
    if recipe.class_weights == "balanced":
        counts = Counter(label_id for row in data.train_rows for label_id in data.label_ids(row))
        return {label: counts.total() / (len(labels) * max(1, counts[i])) for i, label in enumerate(labels)}
    given = _read_weights(recipe.class_weights)
    if unknown := sorted(set(given) - set(labels)):
        raise SettingError(
            "class_weights",
            f"--class-weights names {unknown[0]!r}, which is no label (labels: {', '.join(labels[:12])}).",
        )
    for label, weight in given.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise SettingError("class_weights", f"--class-weights gives '{label}' {weight!r}; write a number above 0.")
    return {label: float(given.get(label, 1.0)) for label in labels}


def _read_weights(source: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(source, Mapping):
        return source
    try:
        weights = parse_json(source if source.lstrip().startswith("{") else read_document(Path(source)))
    except (OSError, ValueError) as error:
        raise SettingError(
            "class_weights",
            f"--class-weights {source[:40]!r} is neither balanced, JSON nor a JSON file ({error}); write it as "
            '{"rare": 3.0}.',
        ) from error
    if not isinstance(weights, dict):
        raise UsageError('--class-weights must be an object of label and weight, such as {"rare": 3.0}.')
    return weights
