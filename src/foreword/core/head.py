"""`Head`: a linear classifier over hidden states, in place of a verbalizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classifier over final hidden states: sequence or token classification.

    Attributes:
        labels: in the order of the rows of ``weight``.
        weight: ``[labels, hidden]``.
        bias: ``[labels]``.
        per_token: a label for every word (token classification), not one for the whole text.
    """

    labels: tuple[str, ...]
    weight: torch.Tensor = field(repr=False)
    bias: torch.Tensor = field(repr=False)
    per_token: bool = False
