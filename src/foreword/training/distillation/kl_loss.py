"""`KLDistillationLoss`: how far what a prefix makes the model expect is from what the text made it expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foreword.core import Front
from foreword.models import LanguageModel
from foreword.text.ragged import lay_out
from foreword.training.data.examples import Example
from foreword.training.distillation.self_study import Conversation
from foreword.training.distillation.teacher_logits import TeacherLogits, read


@dataclass(frozen=True, eq=False)
class DistillationExample(Example):
    """A conversation with the teacher's beliefs behind its tokens.

    Attributes:
        token_ids: ``[places, k]`` most probable tokens.
        logprobs: ``[places, k]`` of these.
    """

    token_ids: Tensor = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.int32))
    logprobs: Tensor = field(default_factory=lambda: torch.zeros(0, 1))


def distillation_examples(conversations: Sequence[Conversation], beliefs: TeacherLogits) -> list[DistillationExample]:
    """An example for every conversation."""
    return [
        DistillationExample(read(conversation), token_ids=ids, logprobs=logprobs)
        for number, conversation in enumerate(conversations)
        for ids, logprobs in [beliefs.of(number)]
    ]


class KLDistillationLoss:
    """Kullback-Leibler divergence of the model behind the front from the teacher, a token; no labels.

    It is over the teacher's most probable tokens and all others together: what divergence the others have among
    themselves is left out, so it is never more than that over the whole vocabulary.
    """

    def total(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> Tensor:
        batch, places = lay_out(front, [example.encoded for example in examples], lm.device)
        logits = lm.logits(batch, places)
        taught = [example for example in examples if isinstance(example, DistillationExample)]
        token_ids = torch.cat([example.token_ids for example in taught]).to(lm.device, torch.long)
        return kl_divergence(logits, token_ids, torch.cat([example.logprobs for example in taught]).to(lm.device)).sum()

    def normalizer(self, examples: Sequence[Example]) -> float:
        return float(sum(len(example.encoded.places) for example in examples))


def kl_divergence(logits: Tensor, token_ids: Tensor, logprobs: Tensor) -> Tensor:
    """``[places]`` divergences of the student's distribution from the teacher's.

    Args:
        logits: ``[places, vocab]`` of the student.
        token_ids: ``[places, k]`` the teacher's most probable tokens.
        logprobs: ``[places, k]`` their log-probabilities.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    every = wide.logsumexp(-1, keepdim=True)
    known = wide.gather(-1, token_ids) - every
    teacher = logprobs.to(wide)
    divergences = (teacher.exp() * (teacher - known)).sum(-1)
    if token_ids.shape[-1] == logits.shape[-1]:
        return divergences
    # Over the other logits themselves: one minus the known probabilities loses all digits where little is left.
    others = wide.scatter(-1, token_ids, float("-inf")).logsumexp(-1) - every[:, 0]
    left = (1 - teacher.exp().sum(-1)).clamp_min(torch.finfo(wide.dtype).tiny)
    return divergences + left * (left.log() - others)
