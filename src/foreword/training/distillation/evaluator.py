"""`DistillationEvaluator`: scores a prefix on the held-out conversations while it is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from foreword.errors import TrainingError
from foreword.training.distillation.answer_scores import score_answers
from foreword.training.distillation.run import DistillationRun
from foreword.training.loop.trainable_prompt import TrainablePrompt


@dataclass(frozen=True)
class DistillationEvaluator:
    """Called at every evaluation; see `foreword.training.loop.inputs.Evaluator`.

    Attributes:
        run: model and held-out conversations.
        learned: what is being learned.
    """

    run: DistillationRun
    learned: TrainablePrompt

    def __call__(self) -> dict[str, float]:
        """Metrics of the prefix as it stands. Raises TrainingError if they are no longer finite."""
        scores = score_answers(self.run.lm, self.learned.front(), self.run.held)
        if not math.isfinite(scores.logprob):
            raise TrainingError("the loss is no longer a number; start again with a smaller --lr and another --out.")
        return {
            "loss": -scores.logprob,
            "agreement": scores.agreement,
            "score": scores.logprob,
            "gap_closed": self.run.held_gap.share_closed(scores),
        }
