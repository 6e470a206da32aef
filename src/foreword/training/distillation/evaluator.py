"""How well something stands in for the text: what the model behind it thinks of the teacher's answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foreword.core import Front
from foreword.errors import TrainingError
from foreword.models import LanguageModel
from foreword.prompts.lower import lower_tokens
from foreword.text import seam
from foreword.text.encoded_example import EncodedExample
from foreword.text.ragged import lay_out
from foreword.training.distillation.document import Document
from foreword.training.distillation.run import DistillationRun
from foreword.training.distillation.self_study import Conversation
from foreword.training.distillation.teacher_logits import batches, read
from foreword.training.modules.trainable_prompt import TrainablePrompt


@dataclass(frozen=True)
class AnswerScores:
    """Of answers that the teacher wrote.

    Attributes:
        logprob: mean log-probability of a token of them, natural logarithm.
        agreement: share of the tokens that are the most probable ones here, too.
    """

    logprob: float
    agreement: float


@dataclass(frozen=True)
class LikelihoodGap:
    """What there is to close between the model alone and the model that sees the text.

    Attributes:
        none: with nothing in front.
        full: behind the whole text, or the chunk that a conversation is about.
    """

    none: AnswerScores
    full: AnswerScores

    @classmethod
    def of(cls, lm: LanguageModel, document: Document, conversations: Sequence[Conversation]) -> LikelihoodGap:
        nothing = bare(lm)
        return cls(
            score_answers(lm, [nothing] * len(document.chunks), conversations),
            score_answers(lm, [Front(chunk.prefix) for chunk in document.chunks], conversations),
        )

    def closed(self, found: AnswerScores) -> float:
        """Share of it that something closes: 0 for nothing in front, 1 for the text. Not a number without a gap."""
        gap = self.full.logprob - self.none.logprob
        return (found.logprob - self.none.logprob) / gap if gap > 0 else math.nan


def bare(lm: LanguageModel) -> Front:
    """Nothing in front but the beginning-of-text token, which a request behind a text does not bring."""
    ids = leading(lm)
    return Front(lower_tokens(lm, ids)) if ids else Front()


def leading(lm: LanguageModel) -> tuple[int, ...]:
    """The beginning-of-text token, if the model has one."""
    return seam.specials(lm.tokenizer)[0]


@torch.inference_mode()
def score_answers(lm: LanguageModel, fronts: Sequence[Front], conversations: Sequence[Conversation]) -> AnswerScores:
    """What the model thinks of answers.

    Args:
        fronts: what stands in front of conversations about each chunk.
    """
    total, same, count = 0.0, 0, 0
    for numbers in batches(conversations):
        some = [conversations[number] for number in numbers]
        batch, places = lay_out(fronts[some[0].chunk], [_answer(each) for each in some], lm.device)
        targets = torch.tensor([token for each in some for token in each.answer], device=lm.device)
        logits = lm.logits(batch, places).float()
        own = logits.gather(1, targets[:, None])[:, 0]
        total += float((own - logits.logsumexp(-1)).sum())
        same += int((logits.argmax(-1) == targets).sum())
        count += len(targets)
    return AnswerScores(total / count, same / count)


def _answer(conversation: Conversation) -> EncodedExample:
    """A conversation, read where tokens of its answer are predicted."""
    question = read(conversation)
    return EncodedExample(question.token_ids, question.places[-len(conversation.answer) :])


@dataclass(frozen=True)
class DistillationEvaluator:
    """Called at every look at the held-out conversations; see `foreword.training.loop.inputs.Evaluator`.

    Attributes:
        run: model and held-out conversations.
        learned: what is being learned.
        gap: of the held-out conversations.
    """

    run: DistillationRun
    learned: TrainablePrompt
    gap: LikelihoodGap

    def __call__(self) -> dict[str, float]:
        """Raises TrainingError if what is learned no longer gives numbers."""
        front = self.learned.front()
        found = score_answers(self.run.lm, [front] * len(self.run.plan.document.chunks), self.run.validation_set)
        if not math.isfinite(found.logprob):
            raise TrainingError("the loss is no longer a number; start again with a smaller --lr and another --out.")
        figures: dict[str, Any] = {"loss": -found.logprob, "agreement": found.agreement, "score": found.logprob}
        return {**figures, "gap_closed": self.gap.closed(found)}
