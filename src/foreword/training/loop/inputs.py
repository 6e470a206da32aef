"""What the Trainer asks of a run, whatever is learned in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from foreword.models import LanguageModel
from foreword.training.data.examples import BatchItem, Example
from foreword.training.loop.losses import Loss
from foreword.training.loop.trainable_prompt import TrainablePrompt


class ScheduleConfig(Protocol):
    """How a run goes on, as `foreword.training.recipe.Recipe` has it."""

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
    @property
    def out(self) -> str | None: ...


class RunDirConfig(Protocol):
    """What a run folder is opened for."""

    @property
    def recipe(self) -> ScheduleConfig: ...
    @property
    def label(self) -> str:
        """What is learned, for the name of its folder."""
        ...

    def settings(self) -> Mapping[str, Any]:
        """What must be the same for a run to be resumed."""
        ...


class TrainerInputs(RunDirConfig, Protocol):
    """Data and settings of one run of the Trainer."""

    @property
    def lm(self) -> LanguageModel: ...
    @property
    def examples(self) -> Sequence[Example]: ...
    @property
    def held(self) -> Sequence[Any]:
        """What the best checkpoint is chosen on."""
        ...

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def batches(self) -> list[list[BatchItem]]: ...
    def loss(self, learned: TrainablePrompt) -> Loss: ...


class Evaluator(Protocol):
    """Measures what is learned as it stands; ``score`` among its metrics chooses the best checkpoint."""

    @property
    def run(self) -> TrainerInputs: ...
    @property
    def learned(self) -> TrainablePrompt: ...
    def __call__(self) -> dict[str, float]: ...
