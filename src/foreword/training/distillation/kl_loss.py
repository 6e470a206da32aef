"""`KLDistillationLoss`: KL divergence of the student (behind the prefix) from the teacher (behind the text)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foreword.core import Front
from foreword.models import LanguageModel
from foreword.text.ragged import make_batch
from foreword.training.data.examples import Example
from foreword.training.distillation.self_study import SelfStudyConversation
from foreword.training.distillation.teacher_logits import TeacherLogits


@dataclass(frozen=True, eq=False)
class DistillationExample(Example):
    """A conversation with the teacher's logits at its answer tokens.

    Attributes:
        token_ids: ``[places, k]`` the teacher's most probable tokens.
        logprobs: ``[places, k]`` their log-probabilities.
    """

    token_ids: Tensor = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.int32))
    logprobs: Tensor = field(default_factory=lambda: torch.zeros(0, 1))


def distillation_examples(
    conversations: Sequence[SelfStudyConversation], teacher: TeacherLogits
) -> list[DistillationExample]:
    """An example for every conversation."""
    return [
        DistillationExample(conversation.encoded(), token_ids=ids, logprobs=logprobs)
        for number, conversation in enumerate(conversations)
        for ids, logprobs in [teacher.of_conversation(number)]
    ]


class KLDistillationLoss:
    """Mean Kullback-Leibler divergence a token of the student from the teacher; no labels.

    Over the teacher's top-k tokens and, as one further event, all other tokens together; so it is never more than the
    divergence over the whole vocabulary.
    """

    def total(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> Tensor:
        batch, places = make_batch(front, [example.encoded for example in examples], lm.device)
        logits = lm.logits(batch, places)
        with_teacher = [example for example in examples if isinstance(example, DistillationExample)]
        token_ids = torch.cat([example.token_ids for example in with_teacher]).to(lm.device, torch.long)
        logprobs = torch.cat([example.logprobs for example in with_teacher]).to(lm.device)
        return kl_divergence(logits, token_ids, logprobs).sum()

    def normalizer(self, examples: Sequence[Example]) -> float:
        return float(sum(len(example.encoded.output_indices) for example in examples))


def kl_divergence(logits: Tensor, token_ids: Tensor, logprobs: Tensor) -> Tensor:
    """``[places]`` divergences of the student's distribution from the teacher's.

    Args:
        logits: ``[places, vocab]`` of the student.
        token_ids: ``[places, k]`` the teacher's most probable tokens.
        logprobs: ``[places, k]`` their log-probabilities.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_normalizer = wide.logsumexp(-1, keepdim=True)
    student = wide.gather(-1, token_ids) - log_normalizer
    teacher = logprobs.to(wide)
    divergences = (teacher.exp() * (teacher - student)).sum(-1)
    if token_ids.shape[-1] == logits.shape[-1]:
        return divergences
    # From the other logits themselves: one minus the top-k probabilities loses all digits where little is left.
    student_rest = wide.scatter(-1, token_ids, float("-inf")).logsumexp(-1) - log_normalizer[:, 0]
    teacher_rest = (1 - teacher.exp().sum(-1)).clamp_min(torch.finfo(wide.dtype).tiny)
    return divergences + teacher_rest * (teacher_rest.log() - student_rest)
