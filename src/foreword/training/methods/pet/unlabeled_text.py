"""Passages: texts without labels, which a model goes on to model while it learns labels.

The auxiliary loss of PET (Schick and Schütze 2021, arXiv:2001.07676, section 3.2) keeps a model that learns from few
rows from forgetting its language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from foreword.core import Batch, Front
from foreword.models import LanguageModel
from foreword.text.encoded_example import EncodedExample
from foreword.training.data.examples import Example
from foreword.training.loop.losses import Loss

# Share of a text's tokens that a masked model has to find.
MASKED = 0.15
# Next tokens of a text that a causal model has to find: rows of logits are long.
NEXT = 32


@dataclass(frozen=True)
class UnlabeledText:
    """A text and what is to be predicted in it.

    Attributes:
        token_ids: what the model sees.
        places: whose outputs are read.
        targets: the tokens that they should give.
    """

    token_ids: tuple[int, ...]
    places: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class UnlabeledTexts:
    """Filled patterns in tokens, dealt out one by one.

    Attributes:
        questions: the texts, each up to its answer or around it.
        seed: chooses what is to be predicted.
        mask: id of the mask token of a masked model; ``None`` for causal models, which predict next tokens.
        fixed: ids that are never masked.
    """

    questions: tuple[EncodedExample, ...]
    seed: int
    mask: int | None = None
    fixed: frozenset[int] = frozenset()

    @classmethod
    def of(cls, lm: LanguageModel, questions: Sequence[EncodedExample], seed: int) -> UnlabeledTexts:
        mask = None if lm.causal else int(lm.tokenizer.mask_token_id)
        return cls(tuple(questions), seed, mask, frozenset(lm.tokenizer.all_special_ids))

    def deal(self, number: int) -> UnlabeledText:
        """The passage with this number; they come round again, with other targets."""
        ids = self.questions[number % len(self.questions)].token_ids
        source = Random(f"{self.seed}/{number}")
        if self.mask is None:
            read = sorted(source.sample(range(len(ids) - 1), min(NEXT, len(ids) - 1)))
            return UnlabeledText(ids, tuple(read), tuple(ids[place + 1] for place in read))
        open_ = [place for place, token in enumerate(ids) if token not in self.fixed]
        chosen = sorted(source.sample(open_, min(len(open_), max(1, round(MASKED * len(open_))))))
        hidden = set(chosen)
        seen = tuple(self.mask if place in hidden else token for place, token in enumerate(ids))
        return UnlabeledText(seen, tuple(chosen), tuple(ids[place] for place in chosen))


@dataclass(frozen=True)
class ExampleWithUnlabeled(Example):
    """An example that brings a passage along, another one at every turn.

    Attributes:
        passages: where it comes from.
        number: of the example's first passage.
        stride: from one turn to the next.
        passage: the one whose turn it is.
    """

    passages: UnlabeledTexts | None = None
    number: int = 0
    stride: int = 1
    passage: UnlabeledText | None = None

    def at(self, turn: int) -> Example:
        assert self.passages is not None
        return replace(self, passage=self.passages.deal(self.number + turn * self.stride))


def with_unlabeled(examples: Sequence[Example], passages: UnlabeledTexts) -> list[Example]:
    """The examples, each with a passage along, so that a pass over the examples takes as many different passages."""
    return [
        ExampleWithUnlabeled(**vars(example), passages=passages, number=number, stride=len(examples))
        for number, example in enumerate(examples)
    ]


@dataclass(frozen=True)
class AuxiliaryLMLoss:
    """The loss of the answers, and of the passages that come along.

    Attributes:
        answers: of the examples themselves.
        factor: how much a passage's mean loss counts beside an example's.
    """

    answers: Loss
    factor: float

    def total(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> Tensor:
        along = [
            example.passage for example in examples if isinstance(example, ExampleWithUnlabeled) and example.passage
        ]
        return self.answers.total(lm, front, examples) + self.factor * _modelled(lm, front, along)

    def weight(self, examples: Sequence[Example]) -> float:
        return self.answers.weight(examples)


def _modelled(lm: LanguageModel, front: Front, passages: Sequence[UnlabeledText]) -> Tensor:
    """Sum over passages of the mean cross-entropy of their targets."""
    batch = Batch.behind(front, [passage.token_ids for passage in passages], device=lm.device)
    starts = batch.starts[len(batch.lengths) - len(passages) :]
    places = [start + at for start, passage in zip(starts, passages, strict=False) for at in passage.places]
    targets = [token for passage in passages for token in passage.targets]
    shares = [1 / len(passage.places) for passage in passages for _ in passage.places]
    logits = lm.logits(batch, torch.tensor(places, dtype=torch.long, device=lm.device))
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    each = F.cross_entropy(wide, torch.tensor(targets, dtype=torch.long, device=lm.device), reduction="none")
    return (each * each.new_tensor(shares)).sum()
