"""What every method of learning gives: a small frozen recipe that builds a trainable prompt encoder."""

from __future__ import annotations

from dataclasses import Field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from foreword.core import Front
from foreword.models import LanguageModel
from foreword.prompts.init import InitialValues


class PromptEncoder(nn.Module):
    """Trainable values in float32 or wider and the front that they make; the frozen model is not part of it."""

    def front(self) -> Front:
        """What stands in front of every row or goes with it, in the model's dtype, with gradients to the values."""
        raise NotImplementedError

    def soft_tokens(self) -> Tensor | None:
        """All learned soft tokens ``[length, hidden]`` as they are now, without gradients; ``None`` if there are none.

        They are what other soft prompts can start from (`foreword.prompts.init.from_task`).
        """
        return None


class Method(Protocol):
    """Hyper-parameters of one way to learn a prompt: a frozen dataclass, whose fields they are.

    Attributes:
        name: as in ``--method``.
        lr: peak learning rate that works at the first run; 0 if nothing is learned.
        length: virtual tokens unless ``--length`` says otherwise; 0 if there are none.
        init: where to start unless ``--init`` says otherwise, see `foreword.prompts.init`.
        soft: it learns input embeddings, so a template may say where they go.
        learns: it has anything to learn.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    name: ClassVar[str]
    length: ClassVar[int]
    init: ClassVar[str]
    soft: ClassVar[bool]
    learns: ClassVar[bool]

    # Not a ClassVar: it may depend on the options.
    @property
    def lr(self) -> float: ...

    def encoder(self, lm: LanguageModel, start: InitialValues) -> PromptEncoder:
        """A fresh encoder for ``lm``, starting from ``start``. Raises UsageError if it cannot start there."""
        ...
