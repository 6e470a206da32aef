"""`TrainingData`: the rows of a run, read and checked, with their templates and labels."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foreword.core import ProblemType, Task
from foreword.errors import DataError, SettingError, TemplateError, UsageError
from foreword.evaluation.row_labels import label_index, row_label, row_label_set, row_number, row_tags
from foreword.text.conversation import (
    Conversation,
    LearnTurns,
    conversation_fields,
    is_conversation,
    is_prompt_completion,
)
from foreword.text.demonstrations import demonstrations
from foreword.text.long_rows import FittedRows, LongRows
from foreword.text.rows import Row, data_digest, is_delimited, read_data, source_name
from foreword.text.task_prompts import field_words
from foreword.text.template import SoftSlot, Template, near_name, slot
from foreword.text.verbalizer import Verbalizer
from foreword.training.data.data_warnings import data_warnings
from foreword.training.data.label_kind import LabelKind, label_kind
from foreword.training.recipe import Recipe

# Labels that an overview counts, at most.
SHOWN_LABELS = 8


@dataclass(frozen=True)
class TrainingData:
    """Rows of one run, to train on and held out, with their templates and label set.

    Attributes:
        templates: how a row becomes text, and where the answer goes; every row goes through each of them. None for
            conversations, which the model's chat template makes text of.
        verbalizer: words of the labels, for templates with ``{mask}`` and no head.
        head_labels: labels of a linear head; none without one.
        per_token: the head labels every word, not the text.
        problem_type: of a head over the whole text: one label, several, or a number.
        label_field: where a row holds its label or its tags.
        train_rows: to train on.
        eval_rows: held out, to choose the best checkpoint on and for the final metrics.
        digest: SHA-256 of the data that was read.
        source: what was read, in a few words: its name and its format.
        warnings: clauses about what may be wrong with the data.
        vocabulary: whether the model was taken to have a language modelling head.
        learn_turns: of conversations, which turns of the assistant are learned.
    """

    templates: tuple[Template, ...]
    verbalizer: Verbalizer | None
    head_labels: tuple[str, ...]
    per_token: bool
    label_field: str
    train_rows: list[Row]
    eval_rows: list[Row]
    digest: str = ""
    source: str = ""
    warnings: tuple[str, ...] = ()
    vocabulary: bool = True
    learn_turns: LearnTurns = "all"
    problem_type: ProblemType = "single_label_classification"

    @classmethod
    def read(cls, recipe: Recipe, *, vocabulary: bool | None = True) -> TrainingData:
        """Read and check the files of a recipe, which needs no model. See `from_rows`."""
        read = read_data(recipe.data, recipe.layout)
        held, warnings = [], read.warnings
        if recipe.eval is not None:
            evaluation = read_data(recipe.eval, recipe.layout if is_delimited(recipe.eval) else None)
            held, warnings = evaluation.rows, (*warnings, *evaluation.warnings)
        data = cls.from_rows(recipe, read.rows, held, vocabulary=vocabulary)
        return replace(
            data,
            digest=data_digest(recipe.data),
            source=f"{source_name(recipe.data)} ({read.what})",
            warnings=(*warnings, *data.warnings),
        )

    @classmethod
    def from_rows(
        cls, recipe: Recipe, rows: list[Row], held: list[Row], *, vocabulary: bool | None = True
    ) -> TrainingData:
        """Choose templates and labels for rows, and check every row.

        Args:
            recipe: templates, verbalizer and fields.
            rows: to train on, at least one.
            held: to evaluate on; if empty, a tenth of the rows is held out.
            vocabulary: whether the model has a language modelling head; without, labels need a linear head. ``None``
                where the model is not known yet: it is what the templates suggest.

        Raises DataError, TemplateError, VerbalizerError or UsageError that says where.
        """
        if holds_conversations(recipe, rows[0]):
            return cls._of_conversations(recipe, rows, held)
        if recipe.learn_turns != "all":
            raise SettingError(
                "learn_turns", f"{rows[0].where} holds no conversation, so --learn-turns has no use; leave it out."
            )
        templates = tuple(Template.parse(source) for source in recipe.templates)
        kind = label_kind(recipe, templates, [*rows, *held])
        per_token = kind.per_token
        generates = recipe.target_field is not None or any(each.target is not None for each in templates)
        if vocabulary is None:
            vocabulary = not templates or any(each.has_mask for each in templates)
        linear = (
            recipe.head == "linear" or kind.needs_head or (recipe.head is None and not vocabulary and not generates)
        )
        if linear:
            recipe.reject_unused_settings(("verbalizer",), "labels are answered by a linear head, which has no words")
        elif generates:
            recipe.reject_unused_settings(("class_weights",), "this run generates text")
        templates = _templates(recipe, templates, rows, linear, per_token)
        labels = _labels([*rows, *held], recipe.label_field, kind) if linear else ()
        verbalizer = None if linear else _verbalizer(recipe, templates, [*rows, *held])
        data = cls(templates, verbalizer, labels, per_token, recipe.label_field, rows, held, vocabulary=vocabulary)
        data = replace(data, problem_type=kind.problem_type)
        _check_optional_fields(templates, [*rows, *held])
        for row in [*rows, *held]:  # in their order: the first wrong row is the one that is named
            data.check_row(row)
        one = data.labels and not kind.needs_head
        label = (lambda row: row_label(row, recipe.label_field)) if one else None
        data = replace(data, warnings=data_warnings(rows, held, templates[0], label))
        if not held:
            rows, held = _split(recipe, rows)
        return replace(data, train_rows=rows, eval_rows=held)

    @property
    def labels(self) -> tuple[str, ...]:
        """Label set; empty where text is generated."""
        return self.head_labels or (self.verbalizer.labels if self.verbalizer is not None else ())

    @classmethod
    def _of_conversations(cls, recipe: Recipe, rows: list[Row], held: list[Row]) -> TrainingData:
        """Rows of conversations. Raises DataError that names the row."""
        if not held:
            rows, held = _split(recipe, rows)
        learn_turns: LearnTurns = "last" if recipe.learn_turns == "last" else "all"
        data = cls((), None, (), False, recipe.label_field, rows, held, learn_turns=learn_turns)
        for row in [*rows, *held]:
            data.conversation(row)
        return data

    @property
    def conversations(self) -> bool:
        """Whether the rows are conversations."""
        return not self.templates

    def conversation(self, row: Row) -> Conversation:
        """The conversation of a row, with the turns that are learned. Raises DataError that names the row."""
        with row.error_context():
            return Conversation.read(row.values, self.learn_turns)

    @property
    def template(self) -> Template | None:
        """The first template; the others have the same soft tokens and the same kind of answer. ``None`` for
        conversations."""
        return self.templates[0] if self.templates else None

    @property
    def num_soft_tokens(self) -> int:
        """Soft tokens that the templates place."""
        return self.template.num_soft_tokens if self.template is not None else 0

    def num_inner_soft_tokens(self, causal: bool) -> int:
        """Those of them that stay inside a row."""
        return self.template.num_inner_soft_tokens(causal) if self.template is not None else 0

    def tasks(self, task: Task) -> list[Task]:
        """The task with each of the templates; of conversations, the task as it is."""
        return [replace(task, template=template.source) for template in self.templates] or [task]

    def plain_tasks(self, task: Task) -> list[Task]:
        """`tasks` without soft tokens, for values that are not learned."""
        plain = [template.without_soft_tokens() for template in self.templates]
        return [replace(task, template=template.source) for template in plain] or [task]

    def with_soft_tokens(self, length: int) -> TrainingData:
        """The same with soft tokens in front of every template, for encoders, which cannot cache them."""
        templates = tuple(Template.parse(f"{{soft:{length}}}{template.source}") for template in self.templates)
        return replace(self, templates=templates)

    def label_ids(self, row: Row) -> tuple[int, ...]:
        """Indices in `labels` of the row's label, labels or tags; empty for a text to generate or a number."""
        if self.verbalizer is not None:
            return (self.verbalizer.index(row_label(row, self.label_field), row.where),)
        if self.per_token:
            return tuple(label_index(self.labels, tag, row) for tag in row_tags(row, self.label_field))
        if self.problem_type == "multi_label_classification":
            return tuple(label_index(self.labels, label, row) for label in row_label_set(row, self.label_field))
        if self.problem_type == "regression":
            return ()
        return (label_index(self.labels, row_label(row, self.label_field), row),) if self.head_labels else ()

    def number(self, row: Row) -> float:
        """The number of a row of a regression, else 0. Raises DataError."""
        return row_number(row, self.label_field) if self.problem_type == "regression" else 0.0

    def check_row(self, row: Row) -> None:
        """Raise unless the row has what the templates and the labels need."""
        label_ids = self.label_ids(row)
        self.number(row)
        if self.per_token:
            words = field_words(self.templates[0], row.values, row.where)
            if len(words) != len(label_ids):
                raise DataError(
                    f"{row.where}: there are {len(label_ids)} tags for {len(words)} words; give one a word."
                )
            return
        for template in self.templates:
            template.fill(row.values, row.where)
            texts = [str(row.values.get(name, row.values.get(f"{name}?"))) for name in template.fields]
            if texts and not any(text.strip() for text in texts):
                raise DataError(
                    f"{row.where}: field '{template.fields[0]}' is empty, so there is nothing to learn from; give it "
                    "a text, or take the row out."
                )

    @property
    def all_rows(self) -> list[Row]:
        """The training rows and the held-out ones."""
        return [*self.train_rows, *self.eval_rows]

    @property
    def overview(self) -> str:
        """The data in one line: rows, labels with counts, and the first template."""
        rows = self.all_rows
        counted = Counter(label_id for row in rows for label_id in self.label_ids(row))
        most = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))[:SHOWN_LABELS]
        shown = [f"{self.labels[label_id]} {count}" for label_id, count in most]
        more = f", {len(counted) - len(shown)} more" if len(counted) > len(shown) else ""
        what = f"; {'tags' if self.per_token else 'labels'} {', '.join(shown)}{more}" if shown else ""
        if self.problem_type == "regression":
            numbers = [self.number(row) for row in rows]
            what = f"; numbers from {min(numbers):g} to {max(numbers):g}"
        parts = f"{len(rows)} rows, {len(self.eval_rows)} of them to evaluate{what}"
        how = (
            f"template {self.template.source!r}" if self.template is not None else "conversations by the chat template"
        )
        return f"{self.source or 'data'}: {parts}; {how}"

    def fit(self, long_rows: LongRows, fits: Callable[[Row], bool]) -> TrainingData:
        """The data with rows that fit, see `LongRows.fit`."""
        chosen = self.checked(long_rows)
        train, held = chosen.fit(self.train_rows, fits), chosen.fit(self.eval_rows, fits)
        both = FittedRows([*train.rows, *held.rows], train.skipped + held.skipped, train.cut + held.cut)
        note = both.note(len(self.train_rows) + len(self.eval_rows), f"'{chosen.field}'")
        warnings = (*self.warnings, note) if note else self.warnings
        return replace(self, train_rows=train.rows, eval_rows=held.rows, warnings=warnings)

    def checked(self, long_rows: LongRows) -> LongRows:
        """The same, with the field to cut. Raises SettingError where nothing can be cut."""
        if long_rows.action == "cut" and self.conversations:
            raise SettingError("long_rows", "--long-rows cut would part answers from their questions; use skip.")
        if long_rows.action == "cut" and self.per_token:
            raise SettingError("long_rows", "--long-rows cut would part words from their tags; use skip.")
        names = [name for template in self.templates for name in template.fields]
        return long_rows.of_fields(list(dict.fromkeys(names)))

    def demonstrations(self, budget: int) -> str:
        """Training rows with their answers as one text of about ``budget`` characters, the labels in turns."""
        pairs = [(self._demonstration(row), (self.label_ids(row) or (0,))[0]) for row in self.train_rows]
        return demonstrations(pairs, budget)

    def label_words(self) -> str:
        """The words of all labels. Raises SettingError if there are none."""
        if self.verbalizer is None and not self.head_labels:
            raise SettingError(
                "init", "--init labels needs labels to choose from, and this run generates text; use --init auto."
            )
        if self.verbalizer is None:
            return " ".join(self.head_labels)
        return "".join(word for words in self.verbalizer.words.values() for word in words)

    def _demonstration(self, row: Row) -> str:
        """The row's filled template with its answer."""
        if self.template is None:
            return _answers_text(self.conversation(row))
        if self.per_token:
            return " ".join(field_words(self.template, row.values, row.where))
        filled = self.template.fill(row.values, row.where)
        text = "".join(piece for piece in filled.prompt if not isinstance(piece, SoftSlot))
        if self.verbalizer is not None:
            after = "".join(piece for piece in filled.after if isinstance(piece, str))
            return text + self.verbalizer.words[self.labels[self.label_ids(row)[0]]][0] + after
        return text + (filled.target or "")


def holds_conversations(recipe: Recipe, row: Row) -> bool:
    """Whether a run on rows like this one learns from conversations.

    Raises SettingError for settings that conversations have no use for.
    """
    if not is_conversation(row.values):
        return False
    fields = conversation_fields(row.values)
    templates = [Template.parse(source) for source in recipe.templates]
    named = {name for template in templates for name in (*template.fields, template.target)} & set(fields)
    if templates and not named:
        return False  # a template over other fields of the row
    recipe.reject_unused_settings(
        ("template", "target_field", "verbalizer", "head", "label_field", "problem_type", "class_weights"),
        f"{row.where} holds a conversation ({', '.join(fields)}), which the model's chat template makes text of",
    )
    return True


def _answers_text(conversation: Conversation) -> str:
    """The text of a conversation's answers; of what was asked if they are calls of tools alone."""
    said = [str(message["content"]) for message in conversation.messages if message["content"]]
    answers = [str(conversation.messages[answer]["content"]) for answer in conversation.answers]
    return "\n".join([text for text in answers if text] or said)


def evenly_spaced(rows: Sequence[Row], count: int) -> list[Row]:
    """``count`` of the rows, or all if there are fewer, evenly over all of them."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _labels(rows: Sequence[Row], field: str, kind: LabelKind) -> tuple[str, ...]:
    """Every label that occurs, in alphabetical order; ``O`` before all other tags. Of a number, the field's name."""
    if kind.problem_type == "regression":
        return (field,)
    if kind.problem_type == "multi_label_classification":
        if not (found := sorted({label for row in rows for label in row_label_set(row, field)})):
            raise DataError(f"field '{field}' is an empty list in every row; there is nothing to learn.")
        return tuple(found)
    if not kind.per_token:
        labels = sorted({row_label(row, field) for row in rows})
    else:
        labels = sorted({tag for row in rows for tag in row_tags(row, field)}, key=lambda tag: (tag != "O", tag))
    if len(labels) < 2:
        raise DataError(f"the data has only the label {labels[0]!r}; there is nothing to tell apart.")
    return tuple(labels)


def _split(recipe: Recipe, rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Hold a tenth of the rows out."""
    if len(rows) < 2:
        raise DataError(f"{source_name(recipe.data)} has one example; give at least two, or --eval.")
    shuffled = random.Random(recipe.seed).sample(rows, len(rows))
    count = max(1, len(rows) // 10)
    return shuffled[count:], shuffled[:count]


def _templates(
    recipe: Recipe, given: tuple[Template, ...], rows: Sequence[Row], linear: bool, per_token: bool
) -> tuple[Template, ...]:
    templates = given or (_guess_template(recipe, rows, linear, per_token),)
    templates = tuple(_with_target(recipe, template) for template in templates)
    for template in templates:
        if per_token:
            template.single_field()
        elif not linear:
            template.require_answer()
        elif template.has_mask or template.target is not None:
            raise TemplateError(
                "a linear head reads the text and fills no {mask}; take it out, or use --head verbalizer."
            )
    _check_compatible(templates)
    return templates


def _with_target(recipe: Recipe, template: Template) -> Template:
    """The template, ended by the target field that the recipe names."""
    if recipe.target_field is None or template.target == recipe.target_field:
        return template
    if template.target is not None or template.has_mask:
        raise TemplateError("--target-field contradicts the template's own answer; give one of them.")
    return Template.parse(template.source + f"{{target:{recipe.target_field}}}")


def _check_optional_fields(templates: Sequence[Template], rows: Sequence[Row]) -> None:
    """Raise TemplateError for an optional field that no row has: a name that is spelled wrong would always be empty."""
    for template in templates:
        for name in set(template.fields) - set(template.required_fields):
            if not any(name in row.values or f"{name}?" in row.values for row in rows):
                near = near_name(name, rows[0].values) or "take it out of the template."
                has = ", ".join(rows[0].values)
                raise TemplateError(f"{rows[0].where}: no row has the field '{name}' (this one has: {has}); {near}")


def _check_compatible(templates: Sequence[Template]) -> None:
    """Raise TemplateError unless all have the same soft tokens, beginning and kind of answer: they share a prompt."""
    first = templates[0]
    for other in templates[1:]:
        if (other.has_mask, other.target) != (first.has_mask, first.target):
            raise TemplateError(
                f"the templates {first.source!r} and {other.source!r} have different answers; make them one."
            )
        if (other.num_soft_tokens, other.constant_pieces) != (first.num_soft_tokens, first.constant_pieces):
            raise TemplateError(
                f"the templates {first.source!r} and {other.source!r} have different soft tokens; make them the same."
            )


def _guess_template(recipe: Recipe, rows: Sequence[Row], linear: bool, per_token: bool) -> Template:
    row = rows[0]
    if recipe.label_field not in row.values and recipe.target_field is None and is_prompt_completion(row.values):
        return Template.parse("{prompt}{target:completion}")
    answer = recipe.target_field or recipe.label_field
    kind: Any = list if per_token else str
    texts = [name for name, value in row.values.items() if isinstance(value, kind) and name != answer]
    if len(texts) > 1:  # every cell of a CSV file is text, a number beside the text, too
        texts = [name for name in texts if not all(_is_number(each.values.get(name)) for each in rows)]
    if len(texts) != 1:
        what = "list" if per_token else "text"
        example = "'{tokens}'" if per_token else "'{text}'" if linear else "'{text}\\nLabel:{mask}'"
        if answer not in row.values:
            mend = near_name(answer, row.values) or (
                "pass --label-field, --target-field for a text to write, --template, or --columns without a header."
            )
            raise DataError(f"{row.where}: the row has no field '{answer}' (it has: {', '.join(row.values)}); {mend}")
        raise TemplateError(
            f"{row.where}: the row has {len(texts)} {what} fields ({', '.join(texts) or 'none'}), so the template "
            f"cannot be guessed; pass --template, such as {example}."
        )
    if recipe.target_field is not None:
        return Template.parse(f"{slot(texts[0])}\nAnswer:{{target:{recipe.target_field}}}")
    return Template.parse(slot(texts[0])) if linear else Template.default(texts[0])


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, str) and float(value) is not None
    except ValueError:
        return False


def _verbalizer(recipe: Recipe, templates: Sequence[Template], rows: Sequence[Row]) -> Verbalizer | None:
    if not templates[0].has_mask:
        if recipe.verbalizer is not None:
            raise UsageError("a verbalizer needs a template with {mask}; this one generates text.")
        return None
    if recipe.verbalizer is not None:
        return Verbalizer.parse(recipe.verbalizer)
    return Verbalizer.from_labels(sorted({row_label(row, recipe.label_field) for row in rows}))
