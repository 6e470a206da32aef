"""`Material`: the data of a run, read and checked, with the template and the words that go with it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from foreword.errors import DataError, TemplateError, UsageError
from foreword.evaluation.evaluate import label_of
from foreword.prompts import init
from foreword.text.rows import Row, read_rows
from foreword.text.template import Template
from foreword.text.verbalizer import Verbalizer
from foreword.training.recipe import Recipe


@dataclass(frozen=True)
class Material:
    """What is learned from.

    Attributes:
        template: says how a row becomes text, and where the answer goes.
        verbalizer: words of the labels, for a template with ``{mask}``.
        label_field: where a row holds its label.
        train_rows: to learn from.
        eval_rows: to choose the best checkpoint on, and for the final figures.
    """

    template: Template
    verbalizer: Verbalizer | None
    label_field: str
    train_rows: list[Row]
    eval_rows: list[Row]

    @classmethod
    def read(cls, recipe: Recipe) -> Material:
        """Raises DataError, TemplateError, VerbalizerError or UsageError that says where."""
        rows = read_rows(recipe.data)
        held = read_rows(recipe.eval) if recipe.eval is not None else []
        template = _template(recipe, rows)
        template.require_answer()
        verbalizer = _verbalizer(recipe, template, [*rows, *held])
        if not held:
            rows, held = _split(recipe, rows)
        material = cls(template, verbalizer, recipe.label_field, rows, held)
        for row in [*rows, *held]:
            material.label(row)
            template.fill(row.values, row.where)
        return material

    def label(self, row: Row) -> int:
        """Place of the row's label in the verbalizer; -1 for a row that has a text to generate."""
        if self.verbalizer is None:
            return -1
        return self.verbalizer.index(label_of(row, self.label_field), row.where)

    def solved(self, budget: int) -> str:
        """Training examples with their answers as one text of about ``budget`` characters, the labels in turns."""
        pairs = [(self._solved(row), self.label(row)) for row in self.train_rows]
        return init.demonstrations(pairs, budget)

    def label_words(self) -> str:
        """The words of all labels. Raises UsageError if there are none."""
        if self.verbalizer is None:
            raise UsageError("--init labels needs a template with {mask}; use --init auto.")
        return "".join(word for words in self.verbalizer.words.values() for word in words)

    def _solved(self, row: Row) -> str:
        filled = self.template.fill(row.values, row.where)
        if self.verbalizer is None:
            return filled.text + (filled.target or "")
        return filled.text + self.verbalizer.words[self.verbalizer.labels[self.label(row)]][0]


def _split(recipe: Recipe, rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Hold a tenth of the rows out."""
    if len(rows) < 2:
        raise DataError(f"{recipe.data} has one example; give at least two, or --eval.")
    order = random.Random(recipe.seed).sample(range(len(rows)), len(rows))
    count = max(1, len(rows) // 10)
    return [rows[i] for i in order[count:]], [rows[i] for i in order[:count]]


def _template(recipe: Recipe, rows: Sequence[Row]) -> Template:
    if recipe.template is None:
        return _guessed(recipe, rows[0])
    template = Template.parse(recipe.template)
    if recipe.target_field is None or template.target == recipe.target_field:
        return template
    if template.target is not None or template.has_mask:
        raise TemplateError("--target-field contradicts the template's own answer; give one of them.")
    return Template.parse(recipe.template + f"{{target:{recipe.target_field}}}")


def _guessed(recipe: Recipe, row: Row) -> Template:
    answer = recipe.target_field or recipe.label_field
    texts = [name for name, value in row.values.items() if isinstance(value, str) and name != answer]
    if len(texts) != 1:
        raise TemplateError(
            f"{row.where}: the row has {len(texts)} text fields ({', '.join(texts) or 'none'}), so the template "
            "cannot be guessed; pass --template, such as '{text}\\nLabel:{mask}'."
        )
    if recipe.target_field is not None:
        return Template.parse(f"{{{texts[0]}}}\nAnswer:{{target:{recipe.target_field}}}")
    return Template.default(texts[0])


def _verbalizer(recipe: Recipe, template: Template, rows: Sequence[Row]) -> Verbalizer | None:
    if not template.has_mask:
        if recipe.verbalizer is not None:
            raise UsageError("a verbalizer needs a template with {mask}; this one generates text.")
        return None
    if recipe.verbalizer is not None:
        return Verbalizer.parse(recipe.verbalizer)
    return Verbalizer.from_labels(sorted({label_of(row, recipe.label_field) for row in rows}))
