"""Rows become token ids, and token ids a schedule of ragged batches of similar lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from foreword.core import Bos
from foreword.errors import DataError, TemplateError
from foreword.models import LanguageModel
from foreword.text import seam
from foreword.text.rows import Row
from foreword.text.verbalizer import WordTrie
from foreword.training.material import Material

# Batches that are sorted by length together.
POOL = 16


@dataclass(frozen=True)
class Example:
    """One row in tokens.

    Attributes:
        prompt: tokens before the answer, as serving would tokenize them.
        label: index of the label, for a template with ``{mask}``.
        target: tokens of the answer, end-of-text included, for a template with ``{target:...}``.
    """

    prompt: tuple[int, ...]
    label: int = -1
    target: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclass(frozen=True)
class Reader:
    """Turns rows into examples, in serving geometry.

    Attributes:
        lm: its tokenizer and its context count.
        material: template and verbalizer.
        length: virtual tokens in front of every example.
        bos: whether the request brings the beginning-of-text token.
    """

    lm: LanguageModel
    material: Material
    length: int = 0
    bos: Bos = "request"

    @cached_property
    def trie(self) -> WordTrie | None:
        """The words of the labels behind a prompt; ``None`` for a template that generates."""
        template, verbalizer = self.material.template, self.material.verbalizer
        return verbalizer.encode(self.lm.tokenizer, template.before_answer) if verbalizer is not None else None

    def read(self, rows: Sequence[Row]) -> list[Example]:
        """Raises DataError, TemplateError or VerbalizerError that names the row."""
        template = self.material.template
        if template.soft_tokens:
            raise TemplateError(
                "the template has {soft:N} slots, which this method does not learn; take them out of the template."
            )
        examples = []
        for row in rows:
            with row.named():
                examples.append(self._example(row))
                self._check_fits(examples[-1])
        return examples

    def _example(self, row: Row) -> Example:
        template = self.material.template
        filled = template.fill(row.values, row.where)
        if filled.after and self.lm.causal:
            raise TemplateError(
                f"the text {filled.after[:20]!r} behind the answer is never seen by a causal model; end the template "
                "with {mask} or {target:...}."
            )
        prompt = tuple(seam.encode(self.lm.tokenizer, filled.text, bos=self.bos == "request"))
        if not prompt:
            raise DataError("the prompt is empty; put text in front of the answer.")
        if filled.target is None:
            return Example(prompt, label=self.material.label(row))
        target = seam.continuation(self.lm.tokenizer, filled.target, template.before_answer)
        if not target and not self._end:
            raise DataError("the answer is empty, and the model has no end-of-text token to learn instead.")
        return Example(prompt, target=(*target, *self._end))

    @cached_property
    def _end(self) -> tuple[int, ...]:
        """The token that ends an answer, if the model has one."""
        end = self.lm.tokenizer.eos_token_id
        return (end,) if end is not None else tuple(sorted(self.lm.end_ids))[:1]

    @cached_property
    def _longest_word(self) -> int:
        return max(len(path) for _, path in self.trie.words) if self.trie is not None else 0

    def _check_fits(self, example: Example) -> None:
        total = self.length + example.size + self._longest_word
        if self.lm.context is not None and total > self.lm.context:
            raise DataError(
                f"the example has {total} tokens with its answer and {self.length} virtual tokens, the context of "
                f"{self.lm.name} is {self.lm.context}; shorten the row."
            )


def schedule(sizes: Sequence[int], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Batches of places in ``sizes``, one a step: shuffled, then sorted by length within pools of batches.

    The whole run is one list, so that a resumed run goes on exactly where it stopped, and every example is seen
    equally often to within one. A pool is at most one pass over the data: a larger one would sort the copies of an
    example next to each other.
    """
    source = random.Random(seed)
    stream = _shuffled_forever(len(sizes), source)
    most = max(1, min(POOL, len(sizes) // batch_size))
    batches: list[list[int]] = []
    while len(batches) < steps:
        count = min(most, steps - len(batches))
        pool = [next(stream) for _ in range(count * batch_size)]
        pool.sort(key=sizes.__getitem__)
        cut = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        source.shuffle(cut)
        batches += cut
    return batches


def _shuffled_forever(count: int, source: random.Random) -> Iterator[int]:
    while True:
        yield from source.sample(range(count), count)
