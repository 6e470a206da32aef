"""`DistillationEvaluator`: scores a prefix on the validation conversations while it is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from foreword.errors import TrainingError
from foreword.training.distillation.answer_scores import score_answers
from foreword.training.distillation.run import DistillationRun
from foreword.training.modules.trainable_prompt import TrainablePrompt


@dataclass(frozen=True)
class DistillationEvaluator:
    """Called at every evaluation; see `foreword.training.loop.inputs.Evaluator`.

    Attributes:
        run: model and validation conversations.
        prompt: the prefix that is being learned.
    """

    run: DistillationRun
    prompt: TrainablePrompt

    def __call__(self) -> dict[str, float]:
        """Metrics of the prefix as it stands. Raises TrainingError if they are no longer finite."""
        scores = score_answers(self.run.lm, self.prompt.front(), self.run.validation_set)
        if not math.isfinite(scores.logprob):
            raise TrainingError("the loss is no longer a number; start again with a smaller --lr and another --out.")
        return {
            "loss": -scores.logprob,
            "agreement": scores.agreement,
            "score": scores.logprob,
            "gap_closed": self.run.validation_gap.share_closed(scores),
        }
