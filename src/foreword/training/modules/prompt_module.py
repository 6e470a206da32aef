"""`PromptModule`: the module that the Trainer trains; its own file, since the Trainer imports 100 MB of libraries."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from foreword.models import LanguageModel
from foreword.models.packed_linear import release_packed_weights
from foreword.training.data.examples import Example
from foreword.training.modules.losses import Loss
from foreword.training.modules.trainable_prompt import TrainablePrompt


class PromptModule(nn.Module):
    """A trainable prompt whose forward gives the loss, as the Trainer wants it.

    Attributes:
        learned: the prompt; the tensors of checkpoints have this name in front.
    """

    def __init__(self, lm: LanguageModel, prompt: TrainablePrompt, loss: Loss) -> None:
        super().__init__()
        self.learned = prompt
        self._lm, self._loss = lm, loss
        release_packed_weights(lm.model)  # initial values and first evaluations packed the weights

    def forward(self, examples: Sequence[Example], normalizer: float) -> dict[str, Tensor]:
        """The sum of the loss over the examples, divided by the normalizer of the step they are a part of."""
        return {"loss": self._loss.total(self._lm, self.learned.front(), examples) / normalizer}
