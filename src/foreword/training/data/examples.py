"""Rows become token ids, and token ids a schedule of ragged batches of similar lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from foreword.core.token_rows import check_token_ids
from foreword.errors import DataError
from foreword.models import LanguageModel
from foreword.models.tokenized_model import TokenizedModel
from foreword.text import seam
from foreword.text.assistant_turns import assistant_turns, bare_request, join_turns
from foreword.text.encoded_example import EncodedExample, ExampleEncoder
from foreword.text.long_rows import MEND
from foreword.text.prompt import Prompt
from foreword.text.rows import Row
from foreword.text.task_prompts import field_words
from foreword.text.template import Template
from foreword.training.data.training_data import TrainingData

# Batches that are sorted by length together.
POOL = 16


@dataclass(frozen=True)
class Example:
    """One row through one template, or one conversation through the chat template, in tokens.

    Attributes:
        encoded: tokens before the answer, as serving would tokenize them, and where the answer is read; those of a
            conversation hold its answers, and are read wherever a token of one is next.
        labels: index of the right label for every answer, or of every label that applies.
        value: the number to learn, of a regression.
        soft_labels: in place of ``labels``, a probability of every label (distillation).
        target: tokens of the answer, end-of-text included, for a template with ``{target:...}``; of a conversation
            those of all its answers, one for every output index.
        other_targets: further answers that are as right; every epoch takes the next one.
    """

    encoded: EncodedExample
    labels: tuple[int, ...] = ()
    soft_labels: tuple[float, ...] = ()
    target: tuple[int, ...] = ()
    other_targets: tuple[tuple[int, ...], ...] = ()
    value: float = 0.0

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Tokens before the answer."""
        return self.encoded.token_ids

    @property
    def num_tokens(self) -> int:
        """Tokens with the longest answer."""
        if self._holds_answers:
            return len(self.prompt_ids) + 1
        return len(self.prompt_ids) + max(map(len, (self.target, *self.other_targets)))

    @property
    def max_answer_tokens(self) -> int:
        """Tokens of the longest answer."""
        if not self._holds_answers:
            return max(map(len, (self.target, *self.other_targets)))
        places = self.encoded.output_indices
        begins = [index for index, place in enumerate(places) if not index or places[index - 1] + 1 != place]
        return max(end - begin for begin, end in zip(begins, [*begins[1:], len(places)], strict=True))

    @property
    def answered(self) -> EncodedExample:
        """All tokens but the last, read where each token of ``target`` is next."""
        if self._holds_answers:
            return self.encoded
        last = len(self.prompt_ids) - 1
        return EncodedExample(self.prompt_ids + self.target[:-1], tuple(range(last, last + len(self.target))))

    @property
    def _holds_answers(self) -> bool:
        """Whether ``encoded`` has a place for every token of ``target``."""
        return len(self.encoded.output_indices) == len(self.target)

    def at_epoch(self, epoch: int) -> Example:
        """The example with the answer of this pass over the data."""
        targets = (self.target, *self.other_targets)
        return replace(self, target=targets[epoch % len(targets)]) if self.other_targets else self


@dataclass(frozen=True)
class ExampleBuilder:
    """Turns rows into examples whose tokens stand where serving has them.

    Attributes:
        lm: the base model, for its context length and its end-of-text token; its weights are not used.
        data: templates and labels.
        encoder: makes tokens of filled templates.
        prefix_length: positions in front of every example.
        label_tokens: tokens that an example grows by when its labels are scored.
        max_length: tokens of an example with its answer, at most; ``None`` for what fits into the context.
    """

    lm: LanguageModel | TokenizedModel
    data: TrainingData
    encoder: ExampleEncoder
    prefix_length: int = 0
    label_tokens: int = 0
    max_length: int | None = None

    def build(self, rows: Sequence[Row]) -> list[Example]:
        """Every row through every template. Raises DataError, TemplateError or VerbalizerError that names the row."""
        examples = []
        for row in rows:
            with row.error_context():
                for example in self.examples(row):
                    self._check(example)
                    examples.append(example)
        return examples

    def encode_unlabeled(self, rows: Sequence[Row]) -> list[EncodedExample]:
        """Every row, which needs no answer, through every template. Raises as `build` does."""
        encoded = []
        for row in rows:
            for template in self.data.templates:
                with row.error_context():
                    encoded.append(self.encoder.encode_prompt(template.fill(row.values, row.where, answer=False)))
                    self._check(Example(encoded[-1]))
        return encoded

    def fits(self, num_tokens: int) -> bool:
        """Whether an example of so many tokens fits into the model's context, and is as short as is wanted."""
        with_answer = num_tokens + self.label_tokens
        if self.max_length is not None and with_answer > self.max_length:
            return False
        return self.lm.context is None or self.prefix_length + with_answer <= self.lm.context

    def row_fits(self, row: Row, *, answer: bool = True) -> bool:
        """Whether a row fits through every template, or the chat template."""
        with row.error_context():
            if self.data.conversations:
                return all(self.fits(example.num_tokens) for example in self.examples(row))
            return all(self.fits(self._num_tokens(row, template, answer)) for template in self.data.templates)

    def _num_tokens(self, row: Row, template: Template, answer: bool) -> int:
        if answer:
            return self._example(row, template).num_tokens
        return len(self.encoder.encode_prompt(template.fill(row.values, row.where, answer=False)).token_ids)

    def examples(self, row: Row) -> list[Example]:
        """The row through every template; or through the chat template, which mostly makes one example of it."""
        if not self.data.conversations:
            return [self._example(row, template) for template in self.data.templates]
        tokenizer, conversation = self.encoder.tokenizer, self.data.conversation(row)
        turns = assistant_turns(tokenizer, conversation, bare_request(tokenizer, bos=self.encoder.bos))
        return [_conversation_example(prompt) for prompt in join_turns(turns)]

    def _example(self, row: Row, template: Template) -> Example:
        labels = self.data.label_ids(row)
        if self.data.per_token:
            words = field_words(template, row.values, row.where)
            return Example(self.encoder.encode_words(words, template.num_inner_soft_tokens(self.lm.causal)), labels)
        filled = template.fill(row.values, row.where)
        if self.data.head_labels:
            return Example(self.encoder.encode_sequence(filled), labels, value=self.data.number(row))
        encoded = self.encoder.encode_prompt(filled)
        if template.target is None:
            return Example(encoded, labels)
        texts = template.references(row.values, row.where)
        first, *others = dict.fromkeys(self._target(text, template) for text in texts)
        return Example(encoded, target=first, other_targets=tuple(others))

    def _target(self, text: str, template: Template) -> tuple[int, ...]:
        """Tokens of an answer, closed by the end-of-text token."""
        after = None if self.lm.is_encoder_decoder else template.before_answer
        tokens = seam.answer_ids(self.encoder.tokenizer, text, after)
        if not tokens and not self._end_of_text:
            raise DataError("the answer is empty, and the model has no end-of-text token to learn instead.")
        return (*tokens, *self._end_of_text)

    @cached_property
    def _end_of_text(self) -> tuple[int, ...]:
        """The token that ends an answer; empty if the model has none."""
        end = self.lm.tokenizer.eos_token_id
        return (end,) if end is not None else tuple(sorted(self.lm.eos_token_ids))[:1]

    def _check(self, example: Example) -> None:
        for ids in (example.prompt_ids, example.target, *example.other_targets):
            check_token_ids(self.lm.tokenizer, self.lm.vocab_size, ids)
        if self.fits(example.num_tokens):
            return
        with_answer = example.num_tokens + self.label_tokens
        if self.max_length is not None and with_answer > self.max_length:
            raise DataError(
                f"the example has {with_answer} tokens with its answer, --max-length is {self.max_length}; {MEND}."
            )
        raise DataError(
            f"the example has {self.prefix_length + with_answer} tokens with its answer and {self.prefix_length} "
            f"virtual tokens, the context of {self.lm.name} is {self.lm.context}; {MEND}."
        )


def _conversation_example(prompt: Prompt) -> Example:
    ids, places = prompt.token_ids, prompt.output_indices
    return Example(EncodedExample(ids[:-1], places), target=tuple(ids[place + 1] for place in places))


@dataclass(frozen=True)
class BatchItem:
    """Where an example of a batch comes from.

    Attributes:
        index: among the examples.
        epoch: how often it was drawn before.
    """

    index: int
    epoch: int


def batch_schedule(sizes: Sequence[int], batch_size: int, steps: int, seed: int) -> list[list[BatchItem]]:
    """A batch for every step: shuffled, then sorted by length within pools of batches.

    The whole run is one list, so that a resumed run goes on exactly where it stopped, and every example is seen
    equally often to within one. A pool is at most one pass over the data: a larger one would sort the copies of an
    example next to each other.

    Args:
        sizes: tokens of every example.
    """
    rng = random.Random(seed)
    stream = _shuffled_epochs(len(sizes), rng)
    largest_pool = max(1, min(POOL, len(sizes) // batch_size))
    batches: list[list[BatchItem]] = []
    while len(batches) < steps:
        count = min(largest_pool, steps - len(batches))
        pool = [next(stream) for _ in range(count * batch_size)]
        pool.sort(key=lambda item: sizes[item.index])
        pool_batches = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        rng.shuffle(pool_batches)
        batches += pool_batches
    return batches


def examples_of(examples: Sequence[Example], batch: Sequence[BatchItem]) -> list[Example]:
    """The examples of a batch, each with its answer for the epoch."""
    return [examples[item.index].at_epoch(item.epoch) for item in batch]


def _shuffled_epochs(count: int, rng: random.Random) -> Iterator[BatchItem]:
    """All indices in random order, again and again."""
    epoch = 0
    while True:
        yield from (BatchItem(index, epoch) for index in rng.sample(range(count), count))
        epoch += 1
