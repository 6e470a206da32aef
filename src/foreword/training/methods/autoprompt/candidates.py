"""Losses of candidate triggers in front of the same rows, many of them in one forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from foreword.core import Batch, Front, soft_id
from foreword.models import LanguageModel
from foreword.text import seam
from foreword.text.encoded_example import EncodedExample, ExampleEncoder
from foreword.text.label_scorers import LabelScorer
from foreword.text.template import FilledTemplate
from foreword.training.data.examples import Example
from foreword.training.modules.losses import LabelLoss

Trigger = tuple[int, ...]

# Tokens of a forward.
BUDGET = 2048


@dataclass(frozen=True)
class CausalCandidateEncoder(ExampleEncoder):
    """Rows of a causal model as they continue a trigger, without the trigger."""

    def answer(self, filled: FilledTemplate) -> EncodedExample:
        ids = seam.continuation(self.tokenizer, filled.text, "")
        return EncodedExample(tuple(ids), (len(ids) - 1,))


@dataclass(frozen=True)
class MaskedCandidateEncoder(ExampleEncoder):
    """Rows of an encoder with soft tokens in place of the trigger, behind the special tokens that begin a row.

    Attributes:
        trigger_length: tokens of the trigger.
    """

    trigger_length: int = 0

    def answer(self, filled: FilledTemplate) -> EncodedExample:
        plain = super().answer(filled)
        head = len(seam.specials(self.tokenizer)[0])
        ids = (*plain.token_ids[:head], *map(soft_id, range(self.trigger_length)), *plain.token_ids[head:])
        return EncodedExample(ids, tuple(place + self.trigger_length for place in plain.places))


LayOut = Callable[[Sequence[Trigger], Sequence[EncodedExample]], tuple[Batch, Tensor]]
"""Triggers and rows -> a batch of every row behind every trigger, and the places whose outputs are read."""


def causal_layout(lm: LanguageModel, scorer: LabelScorer) -> LayOut:
    """For causal models: every trigger once, as a sequence that its copy of the rows continues."""
    start = seam.specials(lm.tokenizer)[0]

    def lay_out(triggers: Sequence[Trigger], examples: Sequence[EncodedExample]) -> tuple[Batch, Tensor]:
        rows, places = scorer.lay_out(Front(), examples, lm.device)
        leads = torch.tensor([[*start, *trigger] for trigger in triggers], device=lm.device)
        step = leads.shape[1] + rows.starts[-1]
        shifts = leads.shape[1] + step * torch.arange(len(triggers), device=lm.device)
        return _repeated_behind(rows, leads), (shifts[:, None] + places).flatten()

    return lay_out


def masked_layout(lm: LanguageModel, scorer: LabelScorer) -> LayOut:
    """For encoders: the trigger in every row."""

    def lay_out(triggers: Sequence[Trigger], examples: Sequence[EncodedExample]) -> tuple[Batch, Tensor]:
        filled = [_with_trigger(example, trigger) for trigger in triggers for example in examples]
        return scorer.lay_out(Front(), filled, lm.device)

    return lay_out


@torch.no_grad()
def candidate_losses(
    lm: LanguageModel, loss: LabelLoss, lay_out: LayOut, triggers: Sequence[Trigger], examples: Sequence[Example]
) -> Tensor:
    """``[triggers]``: the mean loss of the examples behind each trigger."""
    if not triggers:
        return torch.empty(0)
    scorer, encoded = loss.scorer, [example.encoded for example in examples]
    labels = torch.tensor([label for example in examples for label in example.labels], device=lm.device)
    count = max(1, BUDGET // sum(map(scorer.size, encoded)))
    losses = []
    for start in range(0, len(triggers), count):
        some = triggers[start : start + count]
        batch, places = lay_out(some, encoded)
        scores = scorer.scores(lm.logits(batch, places))
        weights = loss.class_weights_for(scores)
        each = F.cross_entropy(scores, labels.repeat(len(some)), weight=weights, reduction="none")
        losses.append(each.unflatten(0, (len(some), -1)).sum(-1) / loss.normalizer(examples))
    return torch.cat(losses).cpu()


def _repeated_behind(rows: Batch, leads: Tensor) -> Batch:
    """A copy of the rows behind each of the leads ``[K, L]``."""
    count, length = leads.shape
    size = len(rows.lengths) + 1
    tokens = torch.cat([leads, rows.token_ids.expand(count, -1)], dim=1).flatten()
    parents = [
        None if parent is None else at * size + parent
        for at in range(count)
        for parent in (None, *(0 if parent is None else parent + 1 for parent in rows.parents))
    ]
    return replace(
        rows,
        lengths=(length, *rows.lengths) * count,
        parents=tuple(parents),
        prefixes=(None,) * (size * count),
        token_ids=tokens,
    )


def _with_trigger(example: EncodedExample, trigger: Trigger) -> EncodedExample:
    """The row with the trigger's tokens in place of soft ones."""
    ids = tuple(token if token >= 0 else trigger[-1 - token] for token in example.token_ids)
    return replace(example, token_ids=ids)
