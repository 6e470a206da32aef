"""Candidates of a search: many triggers in front of the same rows, scored in few forwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from foreword.training.loop.losses import LabelLoss

Trigger = tuple[int, ...]

# Tokens that are run at once.
BUDGET = 2048


@dataclass(frozen=True)
class CausalCandidates(ExampleEncoder):
    """Rows of a causal model as they continue a trigger, which is not in them."""

    def answer(self, filled: FilledTemplate) -> EncodedExample:
        ids = seam.continuation(self.tokenizer, filled.text, "")
        return EncodedExample(tuple(ids), (len(ids) - 1,))


@dataclass(frozen=True)
class MaskedCandidates(ExampleEncoder):
    """Rows of an encoder, with soft tokens in the places of the trigger: behind the special tokens that begin a row."""

    trigger: int = 0

    def answer(self, filled: FilledTemplate) -> EncodedExample:
        plain = super().answer(filled)
        head = len(seam.specials(self.tokenizer)[0])
        ids = (*plain.token_ids[:head], *map(soft_id, range(self.trigger)), *plain.token_ids[head:])
        return EncodedExample(ids, tuple(place + self.trigger for place in plain.places))


LayOut = Callable[[Sequence[Trigger], Sequence[EncodedExample]], tuple[Batch, Tensor]]


def in_front(lm: LanguageModel, choice: LabelScorer) -> LayOut:
    """For causal models: every trigger once, as a sequence that its copy of the rows continues."""
    start = seam.specials(lm.tokenizer)[0]

    def lay_out(triggers: Sequence[Trigger], questions: Sequence[EncodedExample]) -> tuple[Batch, Tensor]:
        rows, places = choice.lay_out(Front(), questions, lm.device)
        leads = torch.tensor([[*start, *trigger] for trigger in triggers], device=lm.device)
        step = leads.shape[1] + rows.starts[-1]
        shifts = leads.shape[1] + step * torch.arange(len(triggers), device=lm.device)
        return _behind(rows, leads), (shifts[:, None] + places).flatten()

    return lay_out


def inside(lm: LanguageModel, choice: LabelScorer) -> LayOut:
    """For encoders: the trigger in every row."""

    def lay_out(triggers: Sequence[Trigger], questions: Sequence[EncodedExample]) -> tuple[Batch, Tensor]:
        filled = [_filled(question, trigger) for trigger in triggers for question in questions]
        return choice.lay_out(Front(), filled, lm.device)

    return lay_out


@torch.no_grad()
def losses(
    lm: LanguageModel, loss: LabelLoss, lay_out: LayOut, triggers: Sequence[Trigger], examples: Sequence[Example]
) -> Tensor:
    """``[triggers]``: the mean loss of the examples behind each of them."""
    if not triggers:
        return torch.empty(0)
    choice = loss.choice()
    questions = [example.question for example in examples]
    labels = torch.tensor([label for example in examples for label in example.labels], device=lm.device)
    found = []
    for some in _cut(triggers, sum(map(choice.size, questions))):
        batch, places = lay_out(some, questions)
        scores = choice.scores(lm.logits(batch, places))
        weights = loss.class_weights.to(scores) if loss.class_weights is not None else None
        each = F.cross_entropy(scores, labels.repeat(len(some)), weight=weights, reduction="none")
        found.append(each.unflatten(0, (len(some), -1)).sum(-1) / loss.weight(examples))
    return torch.cat(found).cpu()


def _cut(triggers: Sequence[Trigger], tokens: int) -> Iterator[Sequence[Trigger]]:
    """As many at once as the budget allows, each with so many tokens of rows."""
    count = max(1, BUDGET // tokens)
    for start in range(0, len(triggers), count):
        yield triggers[start : start + count]


def _behind(rows: Batch, leads: Tensor) -> Batch:
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


def _filled(question: EncodedExample, trigger: Trigger) -> EncodedExample:
    ids = tuple(token if token >= 0 else trigger[-1 - token] for token in question.token_ids)
    return replace(question, token_ids=ids)
