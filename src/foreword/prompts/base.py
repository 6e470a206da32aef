"""What every method of learning gives: a small frozen recipe that builds a trainable prompt encoder."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import nn

from foreword.core import Front
from foreword.models import LanguageModel
from foreword.prompts.init import Start


class PromptEncoder(nn.Module):
    """Trainable values in float32 and the front that they make; the frozen model is not part of it."""

    def front(self) -> Front:
        """What stands in front of every row, in the model's dtype, with gradients to the encoder's values."""
        raise NotImplementedError


class Method(Protocol):
    """Hyper-parameters of one way to learn a prompt.

    Attributes:
        name: as in ``--method``.
        lr: peak learning rate that works at the first run; 0 if nothing is learned.
        length: virtual tokens unless ``--length`` says otherwise; 0 if nothing is learned.
        init: where to start unless ``--init`` says otherwise, see `foreword.prompts.init`.
    """

    name: ClassVar[str]
    lr: ClassVar[float]
    length: ClassVar[int]
    init: ClassVar[str]

    def encoder(self, lm: LanguageModel, start: Start) -> PromptEncoder:
        """A fresh encoder for ``lm``, starting from ``start``."""
        ...
