"""What is learned from a batch: the right labels' scores, or the tokens of the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from foreword.core import Batch, Front
from foreword.models import LanguageModel
from foreword.text.encoded_example import EncodedExample
from foreword.text.label_scorers import LabelScorer
from foreword.text.ragged import lay_out
from foreword.training.data.examples import Example


class Loss(Protocol):
    """A loss as a sum and what to divide it by, so that a batch may be cut into parts: over processes, or one after
    another (gradient accumulation)."""

    def total(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> Tensor:
        """Sum over examples, a scalar."""
        ...

    def weight(self, examples: Sequence[Example]) -> float:
        """What the sum over these examples is divided by for their mean."""
        ...


@dataclass(frozen=True, eq=False)
class LossInputs:
    """Examples laid out behind a front, before the forward that they may share with others.

    Attributes:
        batch: all their tokens.
        places: in the batch, whose outputs are read.
        hidden: final hidden states are read, not logits.
        total: the outputs at those places -> the sum over the examples, a scalar.
    """

    batch: Batch
    places: Tensor
    hidden: bool
    total: Callable[[Tensor], Tensor]


class SharedForwardLoss(Loss, Protocol):
    """A loss whose forward may be shared: examples of several tasks, each behind its own front, in one batch."""

    def ask(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> LossInputs: ...


def shared_forward_totals(lm: LanguageModel, asked: Sequence[LossInputs]) -> list[Tensor]:
    """The sum over the examples of each, from one forward for all that read logits and one for all that read hidden
    states. Nobody's sum holds anything of another's rows."""
    found: dict[int, Tensor] = {}
    for hidden in (False, True):
        chosen = [place for place, each in enumerate(asked) if each.hidden == hidden]
        if not chosen:
            continue
        batches = [asked[place].batch for place in chosen]
        firsts = [0, *accumulate(batch.starts[-1] for batch in batches)]
        rows = [asked[place].places + first for place, first in zip(chosen, firsts, strict=False)]
        read = lm.hidden if hidden else lm.logits
        outputs = read(Batch.together(batches), torch.cat(rows)).split([len(each) for each in rows])
        found |= {place: asked[place].total(output) for place, output in zip(chosen, outputs, strict=True)}
    return [found[place] for place in range(len(asked))]


@dataclass(frozen=True)
class LabelLoss:
    """Cross-entropy over the scores that serving compares.

    Attributes:
        choice: makes the way to score; called every time, since a head's values change.
        class_weights: ``[labels]`` float32, or ``None`` if all labels weigh 1.
    """

    choice: Callable[[], LabelScorer]
    class_weights: Tensor | None = None

    def total(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> Tensor:
        return shared_forward_totals(lm, [self.ask(lm, front, examples)])[0]

    def ask(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> LossInputs:
        choice = self.choice()
        batch, places = choice.lay_out(front, [example.question for example in examples], lm.device)
        return LossInputs(batch, places, choice.hidden, lambda outputs: self._total(choice.scores(outputs), examples))

    def _total(self, scores: Tensor, examples: Sequence[Example]) -> Tensor:
        if examples[0].soft_labels:
            wanted = torch.tensor([example.soft_labels for example in examples], device=scores.device)
            return -(wanted * scores.log_softmax(-1)).sum()
        labels = torch.tensor([label for example in examples for label in example.labels], device=scores.device)
        return F.cross_entropy(scores, labels, weight=self._weights(scores), reduction="sum")

    def weight(self, examples: Sequence[Example]) -> float:
        if self.class_weights is None or examples[0].soft_labels:
            return float(sum(len(example.labels) or 1 for example in examples))
        return float(sum(self.class_weights[label] for example in examples for label in example.labels))

    def _weights(self, scores: Tensor) -> Tensor | None:
        return self.class_weights.to(scores) if self.class_weights is not None else None


class AnswerLoss:
    """Cross-entropy of the answers' tokens; logits only where there is an answer."""

    def total(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> Tensor:
        return shared_forward_totals(lm, [self.ask(lm, front, examples)])[0]

    def ask(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> LossInputs:
        batch, places = lay_out(front, [_answered(example) for example in examples], lm.device, decoder=lm.decoder)
        targets = torch.tensor([token for example in examples for token in example.target], device=lm.device)

        def total(logits: Tensor) -> Tensor:
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return F.cross_entropy(wide, targets, reduction="sum")

        return LossInputs(batch, places, False, total)

    def weight(self, examples: Sequence[Example]) -> float:
        return float(sum(len(example.target) for example in examples))


def _answered(example: Example) -> EncodedExample:
    """The question with its answer behind it, read where each of the answer's tokens is predicted."""
    last = len(example.prompt) - 1
    return EncodedExample(example.prompt + example.target[:-1], tuple(range(last, last + len(example.target))))


def mean_loss(loss: Loss, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> Tensor:
    """The mean that a whole batch is learned by."""
    return loss.total(lm, front, examples) / loss.weight(examples)
