"""Training losses: cross-entropy over labels, or over the tokens of answers."""

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
from foreword.text.label_scorers import LabelScorer
from foreword.text.ragged import make_batch
from foreword.training.data.examples import Example


class Loss(Protocol):
    """A loss as a sum and its normalizer, so that a batch may be cut into parts: over processes, or one after another
    (gradient accumulation)."""

    def total(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> Tensor:
        """Sum over examples, a scalar."""
        ...

    def normalizer(self, examples: Sequence[Example]) -> float:
        """The number that the sum over these examples is divided by for their mean."""
        ...


@dataclass(frozen=True, eq=False)
class LossInputs:
    """Examples of one task in a batch, before a forward that several tasks may share.

    Attributes:
        batch: all tokens, with the task's front.
        places: positions in the batch whose outputs are read.
        hidden: final hidden states are read, not logits.
        criterion: the outputs at those positions -> the sum of the loss over the examples, a scalar.
    """

    batch: Batch
    places: Tensor
    hidden: bool
    criterion: Callable[[Tensor], Tensor]


class SharedForwardLoss(Loss, Protocol):
    """A loss whose forward may be shared: examples of several tasks, each behind its own front, in one batch."""

    def forward_inputs(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> LossInputs: ...

    def total(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> Tensor:
        return shared_forward_totals(lm, [self.forward_inputs(lm, front, examples)])[0]


def shared_forward_totals(lm: LanguageModel, inputs: Sequence[LossInputs]) -> list[Tensor]:
    """The sum of the loss of each task, from one forward for all that read logits and one for all that read hidden
    states. A task's sum depends on no row of another task."""
    totals: dict[int, Tensor] = {}
    for hidden in (False, True):
        chosen = [index for index, each in enumerate(inputs) if each.hidden == hidden]
        if not chosen:
            continue
        batches = [inputs[index].batch for index in chosen]
        offsets = [0, *accumulate(batch.starts[-1] for batch in batches)]
        places = [inputs[index].places + offset for index, offset in zip(chosen, offsets, strict=False)]
        forward = lm.hidden_states if hidden else lm.logits
        outputs = forward(Batch.concat(batches), torch.cat(places)).split([len(each) for each in places])
        totals |= {index: inputs[index].criterion(output) for index, output in zip(chosen, outputs, strict=True)}
    return [totals[index] for index in range(len(inputs))]


@dataclass(frozen=True)
class LabelLoss(SharedForwardLoss):
    """Cross-entropy over the label scores that serving compares.

    Attributes:
        scorer: scores the labels.
        class_weights: ``[labels]`` float32, or ``None`` if all labels weigh 1.
    """

    scorer: LabelScorer
    class_weights: Tensor | None = None

    def forward_inputs(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> LossInputs:
        batch, places = self.scorer.make_batch(front, [example.encoded for example in examples], lm.device)
        return LossInputs(
            batch,
            places,
            self.scorer.uses_hidden_states,
            lambda outputs: self._total(self.scorer.scores(outputs), examples),
        )

    def _total(self, scores: Tensor, examples: Sequence[Example]) -> Tensor:
        if examples[0].soft_labels:
            targets = torch.tensor([example.soft_labels for example in examples], device=scores.device)
            return -(targets * scores.log_softmax(-1)).sum()
        labels = torch.tensor([label for example in examples for label in example.labels], device=scores.device)
        return F.cross_entropy(scores, labels, weight=self.class_weights_for(scores), reduction="sum")

    def normalizer(self, examples: Sequence[Example]) -> float:
        if self.class_weights is None or examples[0].soft_labels:
            return float(sum(len(example.labels) or 1 for example in examples))
        return float(sum(self.class_weights[label] for example in examples for label in example.labels))

    def class_weights_for(self, scores: Tensor) -> Tensor | None:
        """The class weights in the dtype and on the device of the scores."""
        return self.class_weights.to(scores) if self.class_weights is not None else None


class AnswerLoss(SharedForwardLoss):
    """Cross-entropy of the answers' tokens; logits only where there is an answer."""

    def forward_inputs(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> LossInputs:
        batch, places = make_batch(
            front, [example.answered for example in examples], lm.device, is_encoder_decoder=lm.is_encoder_decoder
        )
        targets = torch.tensor([token for example in examples for token in example.target], device=lm.device)

        def criterion(logits: Tensor) -> Tensor:
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return F.cross_entropy(wide, targets, reduction="sum")

        return LossInputs(batch, places, False, criterion)

    def normalizer(self, examples: Sequence[Example]) -> float:
        return float(sum(len(example.target) for example in examples))


def mean_loss(loss: Loss, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> Tensor:
    """The mean over a whole batch, a scalar."""
    return loss.total(lm, front, examples) / loss.normalizer(examples)
