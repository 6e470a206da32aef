"""Rows become token ids, and token ids a schedule of ragged batches of similar lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from foreword.errors import DataError
from foreword.models import LanguageModel
from foreword.text import seam
from foreword.text.encoded_example import EncodedExample, ExampleEncoder
from foreword.text.request import words_of
from foreword.text.rows import Row
from foreword.text.template import Template
from foreword.training.data.training_data import TrainingData

# Batches that are sorted by length together.
POOL = 16


@dataclass(frozen=True)
class Example:
    """One row through one template, in tokens.

    Attributes:
        question: tokens before the answer, as serving would tokenize them, and where the answer is read.
        labels: place of the label that every answer should get.
        soft_labels: in place of ``labels``, a probability of every label (distillation).
        target: tokens of the answer, end-of-text included, for a template with ``{target:...}``.
        others: further answers that are as right; an example takes its turn through all.
    """

    question: EncodedExample
    labels: tuple[int, ...] = ()
    soft_labels: tuple[float, ...] = ()
    target: tuple[int, ...] = ()
    others: tuple[tuple[int, ...], ...] = ()

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.question.token_ids

    @property
    def size(self) -> int:
        return len(self.prompt) + max(map(len, (self.target, *self.others)))

    def at(self, turn: int) -> Example:
        """With the answer whose turn it is: one a pass over the data."""
        targets = (self.target, *self.others)
        return replace(self, target=targets[turn % len(targets)]) if self.others else self


@dataclass(frozen=True)
class ExampleBuilder:
    """Turns rows into examples, in serving geometry.

    Attributes:
        lm: its context counts.
        material: templates and labels.
        layout: how filled templates become tokens.
        length: positions in front of every example.
        longest: tokens that an example grows by when its labels are scored.
    """

    lm: LanguageModel
    material: TrainingData
    layout: ExampleEncoder
    length: int = 0
    longest: int = 0

    def read(self, rows: Sequence[Row]) -> list[Example]:
        """Every row through every template. Raises DataError, TemplateError or VerbalizerError that names the row."""
        examples = []
        for row in rows:
            for template in self.material.templates:
                with row.named():
                    examples.append(self._example(row, template))
                    self._check_fits(examples[-1])
        return examples

    def ask(self, rows: Sequence[Row]) -> list[EncodedExample]:
        """Every row, which needs no answer, through every template. Raises as `read` does."""
        questions = []
        for row in rows:
            for template in self.material.templates:
                with row.named():
                    questions.append(self.layout.answer(template.fill(row.values, row.where, answer=False)))
                    self._check_fits(Example(questions[-1]))
        return questions

    def _example(self, row: Row, template: Template) -> Example:
        answers = self.material.answers(row)
        if self.material.per_token:
            words = words_of(template, row.values, row.where)
            return Example(self.layout.words(words, template.inner_soft(self.lm.causal)), answers)
        filled = template.fill(row.values, row.where)
        if self.material.head_labels:
            return Example(self.layout.state(filled), answers)
        question = self.layout.answer(filled)
        if template.target is None:
            return Example(question, answers)
        texts = template.references(row.values, row.where)
        first, *others = dict.fromkeys(self._target(text, template) for text in texts)
        return Example(question, target=first, others=tuple(others))

    def _target(self, text: str, template: Template) -> tuple[int, ...]:
        after = None if self.lm.decoder else template.before_answer
        tokens = seam.written(self.layout.tokenizer, text, after)
        if not tokens and not self._end:
            raise DataError("the answer is empty, and the model has no end-of-text token to learn instead.")
        return (*tokens, *self._end)

    @cached_property
    def _end(self) -> tuple[int, ...]:
        """The token that ends an answer, if the model has one."""
        end = self.lm.tokenizer.eos_token_id
        return (end,) if end is not None else tuple(sorted(self.lm.end_ids))[:1]

    def has_room(self, size: int) -> bool:
        """Whether an example of so many tokens fits into the model's context."""
        return self.lm.context is None or self.length + size + self.longest <= self.lm.context

    def _check_fits(self, example: Example) -> None:
        total = self.length + example.size + self.longest
        if not self.has_room(example.size):
            raise DataError(
                f"the example has {total} tokens with its answer and {self.length} virtual tokens, the context of "
                f"{self.lm.name} is {self.lm.context}; shorten the row."
            )


@dataclass(frozen=True)
class BatchItem:
    """An example in a batch.

    Attributes:
        place: among the examples.
        turn: how often it was drawn before.
    """

    place: int
    turn: int


def batch_schedule(sizes: Sequence[int], batch_size: int, steps: int, seed: int) -> list[list[BatchItem]]:
    """Batches of places in ``sizes``, one a step: shuffled, then sorted by length within pools of batches.

    The whole run is one list, so that a resumed run goes on exactly where it stopped, and every example is seen
    equally often to within one. A pool is at most one pass over the data: a larger one would sort the copies of an
    example next to each other.
    """
    source = random.Random(seed)
    stream = _shuffled_forever(len(sizes), source)
    most = max(1, min(POOL, len(sizes) // batch_size))
    batches: list[list[BatchItem]] = []
    while len(batches) < steps:
        count = min(most, steps - len(batches))
        pool = [next(stream) for _ in range(count * batch_size)]
        pool.sort(key=lambda draw: sizes[draw.place])
        cut = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        source.shuffle(cut)
        batches += cut
    return batches


def _shuffled_forever(count: int, source: random.Random) -> Iterator[BatchItem]:
    turn = 0
    while True:
        yield from (BatchItem(place, turn) for place in source.sample(range(count), count))
        turn += 1
