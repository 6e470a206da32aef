"""`Learner`: the module that the Trainer trains, apart from it, since the Trainer brings 100 MB of libraries along."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from foreword.models import LanguageModel
from foreword.models.products import release
from foreword.training.data import Example
from foreword.training.learned import Learned
from foreword.training.losses import Loss


class Learner(nn.Module):
    """What is learned, and its loss."""

    def __init__(self, lm: LanguageModel, learned: Learned, loss: Loss) -> None:
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
