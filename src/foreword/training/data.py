"""Rows become token ids, and token ids a schedule of ragged batches of similar lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from foreword.core import Bos
from foreword.errors import DataError, TemplateError
from foreword.evaluation.evaluate import label_of
from foreword.models import LanguageModel
from foreword.text import seam
from foreword.text.rows import Row
from foreword.text.template import Template
from foreword.text.verbalizer import Verbalizer


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


def examples(
    lm: LanguageModel,
    template: Template,
    verbalizer: Verbalizer | None,
    rows: Sequence[Row],
    *,
    label_field: str,
    virtual_tokens: int,
    bos: Bos = "request",
) -> list[Example]:
    """Tokenize rows in serving geometry.

    Raises:
        DataError, TemplateError, VerbalizerError: naming the row, for example one that does not fit the context.
    """
    if template.soft_tokens:
        raise TemplateError(
            "the template has {soft:N} slots, which this method does not learn; take them out of the template."
        )
    made = [_example(lm, template, verbalizer, row, label_field, bos) for row in rows]
    for row, example in zip(rows, made, strict=True):
        total = virtual_tokens + example.size
        if lm.context is not None and total > lm.context:
            raise DataError(
                f"{row.where}: the example has {total} tokens with its {virtual_tokens} virtual tokens, the context of "
                f"{lm.name} is {lm.context}; shorten the row."
            )
    return made


def _example(
    lm: LanguageModel, template: Template, verbalizer: Verbalizer | None, row: Row, label_field: str, bos: Bos
) -> Example:
    filled = template.fill(row.values, row.where)
    if filled.after and lm.causal:
        raise TemplateError(
            f"the text {filled.after[:20]!r} behind the answer is never seen by a causal model; end the template "
            "with {mask} or {target:...}."
        )
    prompt = tuple(seam.encode(lm.tokenizer, filled.text, bos=bos == "request"))
    if not prompt:
        raise DataError(f"{row.where}: the prompt is empty; put text in front of the answer.")
    if verbalizer is not None:
        return Example(prompt, label=verbalizer.index(label_of(row, label_field), row.where))
    target = seam.continuation(lm.tokenizer, filled.target or "", template.before_answer)
    return Example(prompt, target=(*target, lm.tokenizer.eos_token_id))


def schedule(sizes: Sequence[int], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Batches of places in ``sizes``, one a step: shuffled, then sorted by length within pools of 16 batches.

    The whole run is one list, so that a resumed run goes on exactly where it stopped, and every example is seen
    equally often to within one.
    """
    source = random.Random(seed)
    stream = _shuffled_forever(len(sizes), source)
    batches: list[list[int]] = []
    while len(batches) < steps:
        pool = [next(stream) for _ in range(16 * batch_size)]
        pool.sort(key=sizes.__getitem__)
        cut = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        source.shuffle(cut)
        batches += cut
    return batches[:steps]


def _shuffled_forever(count: int, source: random.Random) -> Iterator[int]:
    while True:
        yield from source.sample(range(count), count)
