"""`DistillationRun`: what the Trainer needs to learn a prefix of one length from the teacher's beliefs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foreword.core import KVPrefix
from foreword.models import LanguageModel
from foreword.prompts.prefix import PrefixValues
from foreword.training.data.examples import BatchItem, batch_schedule
from foreword.training.distillation.kl_loss import DistillationExample, KLDistillationLoss
from foreword.training.distillation.recipe import DistilRecipe
from foreword.training.distillation.self_study import Conversation
from foreword.training.distillation.setup import DistillationSetup
from foreword.training.modules.trainable_prompt import TrainablePrompt


@dataclass(frozen=True, eq=False)
class DistillationRun:
    """A `foreword.training.loop.inputs.TrainerInputs`.

    Attributes:
        plan: model, text and settings.
        examples: conversations with the teacher's beliefs.
        validation_set: conversations that choose the best checkpoint.
    """

    plan: DistillationSetup
    examples: Sequence[DistillationExample]
    validation_set: Sequence[Conversation]

    @property
    def lm(self) -> LanguageModel:
        return self.plan.lm

    @property
    def recipe(self) -> DistilRecipe:
        return self.plan.recipe

    @property
    def steps(self) -> int:
        return self.recipe.max_steps

    @property
    def lr(self) -> float:
        return self.recipe.lr

    @property
    def batch_size(self) -> int:
        return min(self.recipe.batch_size, len(self.examples))

    @property
    def batches(self) -> list[list[BatchItem]]:
        return batch_schedule(
            [each.num_tokens for each in self.examples], self.batch_size, self.steps, self.recipe.seed
        )

    def loss(self, prompt: TrainablePrompt) -> KLDistillationLoss:
        return KLDistillationLoss()

    def learned(self, start: KVPrefix) -> TrainablePrompt:
        """Everything trainable at its initial values: all of the prefix but its first position."""
        return TrainablePrompt(PrefixValues(start, self.lm.dtype, still=1))
