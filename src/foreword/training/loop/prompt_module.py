"""`PromptModule`: the module that the Trainer trains; its own file, since the Trainer imports 100 MB of libraries."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from foreword.models import LanguageModel
from foreword.models.packed_linear import release
from foreword.training.data.examples import Example
from foreword.training.loop.losses import Loss
from foreword.training.loop.trainable_prompt import TrainablePrompt


class PromptModule(nn.Module):
    """What is learned, and its loss."""

    def __init__(self, lm: LanguageModel, learned: TrainablePrompt, loss: Loss) -> None:
        super().__init__()
        self.learned = learned
        self._lm, self._loss = lm, loss
        release(lm.model)  # what initial values and first scores were computed by

    def forward(self, examples: Sequence[Example], weight: float) -> dict[str, Tensor]:
        """The part of a step's mean loss that these examples are.

        Args:
            weight: what the sum over the examples is divided by.
        """
        return {"loss": self._loss.total(self._lm, self.learned.front(), examples) / weight}
