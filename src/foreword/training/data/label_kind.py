"""What the label field of rows holds: one label, a tag a word, several labels, or a number.

Nothing is guessed in silence: rows that could be read in two ways are refused until ``--problem-type`` says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foreword.core import ProblemType
from foreword.errors import DataError, SettingError, UsageError
from foreword.text.row import Row
from foreword.text.template import Template
from foreword.training.recipe import Recipe

TOKENS = "token_classification"


@dataclass(frozen=True)
class LabelKind:
    """What a label field holds.

    Attributes:
        per_token: a tag for every word.
        problem_type: of a head over the whole text.
    """

    per_token: bool = False
    problem_type: ProblemType = "single_label_classification"

    @property
    def needs_head(self) -> bool:
        """Whether only a linear head answers it."""
        return self.per_token or self.problem_type != "single_label_classification"


def label_kind(recipe: Recipe, templates: Sequence[Template], rows: Sequence[Row]) -> LabelKind:
    """The kind of the labels of rows, as ``--problem-type`` says or as they look.

    Raises:
        DataError: they could be read in two ways.
        SettingError, UsageError: settings that contradict them.
    """
    if recipe.target_field is not None or any(template.target is not None for template in templates):
        if recipe.problem_type is not None:
            raise SettingError("problem_type", "--problem-type is for labels, and this run generates text.")
        return LabelKind()
    kind = _as_said(recipe) or _as_found(recipe, templates, rows)
    if kind.needs_head and recipe.head == "verbalizer":
        what = {"regression": "a number", "multi_label_classification": "several labels"}.get(kind.problem_type)
        what = "a tag for every word" if kind.per_token else what
        raise UsageError(f"field '{recipe.label_field}' holds {what}, which needs --head linear.")
    return kind


def _as_said(recipe: Recipe) -> LabelKind | None:
    if recipe.problem_type is None:
        return None
    if recipe.problem_type == TOKENS:
        return LabelKind(per_token=True)
    said: dict[str, LabelKind] = {
        "single_label_classification": LabelKind(),
        "multi_label_classification": LabelKind(problem_type="multi_label_classification"),
        "regression": LabelKind(problem_type="regression"),
    }
    return said[recipe.problem_type]


def _as_found(recipe: Recipe, templates: Sequence[Template], rows: Sequence[Row]) -> LabelKind:
    field = recipe.label_field
    lists = [row for row in rows if isinstance(row.values.get(field), list)]
    if not lists:
        _refuse_fractions(recipe, rows)
        return LabelKind()
    if len(lists) < len(rows):
        first = rows[0].values.get(field)
        odd = next(row for row in rows if isinstance(row.values.get(field), list) != isinstance(first, list))
        raise DataError(
            f"{odd.where}: label {odd.values.get(field)!r} is {'no ' if isinstance(first, list) else 'a '}list, unlike "
            f"that of {rows[0].where}; write a list in every row, or in none."
        )
    names = {name for template in templates for name in template.fields} or rows[0].values.keys() - {field}
    if any(isinstance(rows[0].values.get(name), list) for name in names):
        return LabelKind(per_token=True)
    if len(names) == 1 and all(_has_a_label_a_word(row, next(iter(names)), field) for row in rows):
        raise DataError(
            f"{rows[0].where}: field '{field}' has as many labels as the text has words, in every row; say with "
            f"--problem-type {TOKENS} that they are tags of the words, or with multi_label_classification that a text "
            "has several labels."
        )
    return LabelKind(problem_type="multi_label_classification")


def _has_a_label_a_word(row: Row, name: str, field: str) -> bool:
    text: Any = row.values.get(name)
    return isinstance(text, str) and len(text.split()) == len(row.values[field])


def _refuse_fractions(recipe: Recipe, rows: Sequence[Row]) -> None:
    """Raise DataError for labels that are numbers with fractions, unless words were given for them."""
    if recipe.verbalizer is not None:
        return
    numbers = [_number(row.values.get(recipe.label_field)) for row in rows]
    if None in numbers:
        return
    if fraction := next((row for row, number in zip(rows, numbers, strict=True) if number and number % 1), None):
        raise DataError(
            f"{fraction.where}: field '{recipe.label_field}' holds numbers such as "
            f"{fraction.values[recipe.label_field]} ({len(set(numbers))} different); say with --problem-type "
            "regression that the number is to be learned, or with single_label_classification that each is a label."
        )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None
