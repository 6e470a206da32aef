"""Protocols of the training loop: the inputs of one run, and the evaluator that chooses its best checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from foreword.models import LanguageModel
from foreword.training.data.examples import BatchItem, Example
from foreword.training.modules.losses import Loss
from foreword.training.modules.trainable_prompt import TrainablePrompt


class TrainerConfig(Protocol):
    """The settings of a recipe that the Trainer reads, see `foreword.training.recipe.Recipe`."""

    @property
    def accumulate(self) -> int: ...
    @property
    def patience(self) -> int | None: ...
    @property
    def checkpointing(self) -> bool: ...
    @property
    def seed(self) -> int: ...
    @property
    def resume(self) -> bool: ...
    @property
    def report_to(self) -> str: ...


class TrainerInputs(Protocol):
    """Model, data and settings of one run of the Trainer."""

    @property
    def lm(self) -> LanguageModel: ...
    @property
    def recipe(self) -> TrainerConfig: ...
    @property
    def examples(self) -> Sequence[Example]:
        """The training set."""
        ...

    @property
    def validation_set(self) -> Sequence[Any]:
        """Held-out data that the best checkpoint is chosen on."""
        ...

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def batches(self) -> list[list[BatchItem]]: ...
    def loss(self, prompt: TrainablePrompt) -> Loss: ...


class Evaluator(Protocol):
    """Computes metrics of the present values on the validation set; ``score`` among them selects the best
    checkpoint."""

    def __call__(self) -> dict[str, float]: ...
