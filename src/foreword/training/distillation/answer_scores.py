"""`AnswerScores`, `LikelihoodGap`: how well a model behind some prefix predicts the teacher's answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foreword.core import Front
from foreword.models import LanguageModel
from foreword.prompts.lower import lower_tokens
from foreword.text import seam
from foreword.text.ragged import make_batch
from foreword.training.distillation.document import Document
from foreword.training.distillation.self_study import SelfStudyConversation
from foreword.training.distillation.teacher_logits import conversation_batches


@dataclass(frozen=True)
class AnswerScores:
    """Teacher-forced scores of the teacher's answers.

    Attributes:
        logprob: mean log-probability of an answer token, natural logarithm.
        agreement: share of the answer tokens that are the most probable ones (top-1 accuracy).
    """

    logprob: float
    agreement: float


@dataclass(frozen=True)
class LikelihoodGap:
    """Scores of the model without the text and with it.

    Attributes:
        none: with nothing in front.
        full: behind the whole text, or the chunk that a conversation is about.
    """

    none: AnswerScores
    full: AnswerScores

    @classmethod
    def measure(
        cls, lm: LanguageModel, document: Document, conversations: Sequence[SelfStudyConversation]
    ) -> LikelihoodGap:
        return cls(
            score_answers(lm, bos_front(lm), conversations),
            score_answers(lm, [Front(chunk.prefix) for chunk in document.chunks], conversations),
        )

    def share_closed(self, scores: AnswerScores) -> float:
        """Share of the gap in log-probability that is closed: 0 is no text, 1 the text; NaN without a gap."""
        gap = self.full.logprob - self.none.logprob
        return (scores.logprob - self.none.logprob) / gap if gap > 0 else math.nan


def bos_front(lm: LanguageModel) -> Front:
    """The beginning-of-text token alone, which a request behind a text does not bring."""
    ids = bos_ids(lm)
    return Front(lower_tokens(lm, ids)) if ids else Front()


def bos_ids(lm: LanguageModel) -> tuple[int, ...]:
    """The beginning-of-text token, if the model has one."""
    return seam.special_tokens(lm.tokenizer)[0]


@torch.inference_mode()
def score_answers(
    lm: LanguageModel, front: Front | Sequence[Front], conversations: Sequence[SelfStudyConversation]
) -> AnswerScores:
    """Scores of the conversations' answers.

    Args:
        front: in front of all conversations; or one for each chunk, in front of conversations about it.
    """
    logprob, matches, count = 0.0, 0, 0
    for numbers in conversation_batches(conversations):
        batched = [conversations[number] for number in numbers]
        batch_front = front if isinstance(front, Front) else front[batched[0].chunk]
        batch, places = make_batch(batch_front, [each.encoded() for each in batched], lm.device)
        targets = torch.tensor([token for each in batched for token in each.answer], device=lm.device)
        logits = lm.logits(batch, places).float()
        target_logits = logits.gather(1, targets[:, None])[:, 0]
        logprob += float((target_logits - logits.logsumexp(-1)).sum())
        matches += int((logits.argmax(-1) == targets).sum())
        count += len(targets)
    return AnswerScores(logprob / count, matches / count)
