"""`Lesson`: what the Trainer needs to learn a prefix of one length from the teacher's beliefs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.core import KVPrefix
from foreword.models import LanguageModel
from foreword.prompts.prefix import PrefixValues
from foreword.training.data import Draw, schedule
from foreword.training.distillation.imitation import Imitation, ImitationLoss
from foreword.training.distillation.plan import Plan
from foreword.training.distillation.recipe import DistilRecipe
from foreword.training.distillation.study import Conversation
from foreword.training.learned import Learned


@dataclass(frozen=True, eq=False)
class Lesson:
    """A `foreword.training.course.Course`.

    Attributes:
        plan: model, text and settings.
        examples: conversations with the teacher's beliefs.
        held: conversations that choose the best checkpoint.
    """

    plan: Plan
    examples: Sequence[Imitation]
    held: Sequence[Conversation]

    @property
    def lm(self) -> LanguageModel:
        return self.plan.lm

    @property
    def recipe(self) -> DistilRecipe:
        return self.plan.recipe

    @property
    def label(self) -> str:
        return "distill"

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
    def batches(self) -> list[list[Draw]]:
        return schedule([each.size for each in self.examples], self.batch_size, self.steps, self.recipe.seed)

    def loss(self, learned: Learned) -> ImitationLoss:
        return ImitationLoss()

    def learned(self, start: KVPrefix) -> Learned:
        """Everything trainable at its initial values: all of the prefix but its first position."""
        return Learned(PrefixValues(start, self.lm.dtype, still=1))

    def settings(self) -> Mapping[str, Any]:
        return self.plan.settings()
