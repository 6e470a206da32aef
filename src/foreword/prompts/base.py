"""`Method` and `PromptEncoder`: the hyper-parameters of a learning method, and the trainable module that they build."""

from __future__ import annotations

from dataclasses import Field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from foreword.core import Front
from foreword.models import LanguageModel
from foreword.prompts.init import InitialValues


class PromptEncoder(nn.Module):
    """Trainable parameters, in float32 or wider, and the `Front` computed from them; the frozen model is not in it."""

    def front(self) -> Front:
        """The learned parts of a forward in the model's dtype, with gradients to the parameters."""
        raise NotImplementedError

    def soft_tokens(self) -> Tensor | None:
        """The current soft tokens ``[length, hidden]`` without gradients; ``None`` if the method has none.

        Other soft prompts can be initialized with them (`foreword.prompts.init.from_task`).
        """
        return None


class Method(Protocol):
    """Hyper-parameters of a learning method: a frozen dataclass whose fields are the options of ``--method``.

    Attributes:
        name: as in ``--method``.
        lr: default peak learning rate; 0 if no optimizer runs.
        length: default number of virtual tokens; 0 if there are none.
        init: default initialization, see `foreword.prompts.init`.
        soft: it learns soft tokens, so a template may place them with ``{soft:N}``.
        learns: False for a baseline without anything to learn.
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
        """A new encoder for ``lm`` with the initial values ``start``. Raises UsageError if they do not fit."""
        ...
