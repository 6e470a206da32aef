"""PET: the model itself learns to fill patterns, through an adapter or in all its weights (Schick and Schütze 2021,
arXiv:2001.07676)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from foreword.core import Front
from foreword.errors import SettingError
from foreword.models import LanguageModel
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import InitialValues
from foreword.prompts.lora import LoRA

WEIGHTS = ("lora", "all")


class FullWeights(PromptEncoder):
    """Every weight of the model, learned in place: nothing stands in front.

    Args:
        model: `foreword.training.methods.full_finetuning` makes its parameters trainable and restores them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterList(model.parameters())

    def front(self) -> Front:
        return Front()


@dataclass(frozen=True)
class Pet:
    """Learn from patterns and verbalizers; `foreword.training.methods.pet.pet` distills an ensemble of patterns.

    Attributes:
        weights: ``lora``, an adapter that is published as a task, or ``all`` weights, which become a model folder.
        rank: of the adapter; that of `LoRA` by default.
        unlabeled: file of rows without labels, which the patterns label for each other.
        lm_weight: how much modelling the unlabeled texts counts beside their labels.
    """

    name: ClassVar[str] = "pet"
    length: ClassVar[int] = 0
    init: ClassVar[str] = "random"
    soft: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    weights: str = "lora"
    rank: int | None = None
    unlabeled: str | None = None
    lm_weight: float | None = None

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise SettingError("weights", f"--weights must be {' or '.join(WEIGHTS)}, got {self.weights!r}.")
        if self.weights == "all" and self.rank is not None:
            raise SettingError("rank", "--rank is of an adapter, and --weights all learns none; leave one of them out.")
        if self.lm_weight is not None and self.unlabeled is None:
            raise SettingError("lm_weight", "--lm-weight is for texts without labels; give them with --unlabeled FILE.")
        if self.lm_weight is not None and not 0 <= self.lm_weight < float("inf"):
            raise SettingError("lm_weight", f"--lm-weight must be 0 or more, got {self.lm_weight}.")

    @property
    def lr(self) -> float:
        return 3e-5 if self.weights == "all" else LoRA.lr

    def encoder(self, lm: LanguageModel, start: InitialValues) -> PromptEncoder:
        if self.weights == "all":
            return FullWeights(lm.model)
        return (LoRA() if self.rank is None else LoRA(self.rank)).encoder(lm, start)
