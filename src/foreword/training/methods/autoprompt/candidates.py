"""Losses of candidate triggers in front of the same rows, many of them in one forward."""

from __future__ import annotations

from collections.abc import Sequence
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

    def encode_prompt(self, filled: FilledTemplate) -> EncodedExample:
        ids = seam.continuation_ids(self.tokenizer, filled.text, "")
        return EncodedExample(tuple(ids), (len(ids) - 1,))


@dataclass(frozen=True)
class MaskedCandidateEncoder(ExampleEncoder):
    """Rows of an encoder with soft tokens in place of the trigger, behind the special tokens that begin a row.

    Attributes:
        trigger_length: tokens of the trigger.
    """

    trigger_length: int = 0

    def encode_prompt(self, filled: FilledTemplate) -> EncodedExample:
        plain = super().encode_prompt(filled)
        head = len(seam.special_tokens(self.tokenizer)[0])
        ids = (*plain.token_ids[:head], *map(soft_id, range(self.trigger_length)), *plain.token_ids[head:])
        return EncodedExample(ids, tuple(place + self.trigger_length for place in plain.output_indices))


@torch.no_grad()
def candidate_losses(
    lm: LanguageModel, loss: LabelLoss, triggers: Sequence[Trigger], examples: Sequence[Example]
) -> Tensor:
    """``[triggers]``: the mean loss of the examples behind each trigger."""
    if not triggers:
        return torch.empty(0)
    scorer, encoded = loss.scorer, [example.encoded for example in examples]
    labels = torch.tensor([label for example in examples for label in example.labels], device=lm.device)
    count = max(1, BUDGET // sum(map(scorer.num_tokens, encoded)))
    losses = []
    for start in range(0, len(triggers), count):
        some = triggers[start : start + count]
        batch, places = _lay_out(lm, scorer, some, encoded)
        scores = scorer.scores(lm.logits(batch, places))
        weights = loss.class_weights_for(scores)
        each = F.cross_entropy(scores, labels.repeat(len(some)), weight=weights, reduction="none")
        losses.append(each.unflatten(0, (len(some), -1)).sum(-1) / loss.normalizer(examples))
    return torch.cat(losses).cpu()


def _lay_out(
    lm: LanguageModel, scorer: LabelScorer, triggers: Sequence[Trigger], examples: Sequence[EncodedExample]
) -> tuple[Batch, Tensor]:
    """A batch of every row with every trigger, and the places in it whose outputs are read."""
    if not lm.causal:
        filled = [_with_trigger(example, trigger) for trigger in triggers for example in examples]
        return scorer.make_batch(Front(), filled, lm.device)
    # Every trigger once, as a sequence that its copy of the rows continues.
    rows, places = scorer.make_batch(Front(), examples, lm.device)
    start = seam.special_tokens(lm.tokenizer)[0]
    sequences = torch.tensor([[*start, *trigger] for trigger in triggers], device=lm.device)
    length = sequences.shape[1]
    shifts = length + (length + rows.starts[-1]) * torch.arange(len(triggers), device=lm.device)
    return _repeated_behind(rows, sequences), (shifts[:, None] + places).flatten()


def _repeated_behind(rows: Batch, sequences: Tensor) -> Batch:
    """A copy of the rows behind each of the sequences ``[K, L]``."""
    count, length = sequences.shape
    size = len(rows.lengths) + 1
    tokens = torch.cat([sequences, rows.token_ids.expand(count, -1)], dim=1).flatten()
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
