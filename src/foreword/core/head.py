"""`Head`: a linear layer over hidden states, in place of a verbalizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch


ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""What the outputs of a head mean, by the name that Transformers' configurations have for it."""


@dataclass(frozen=True, eq=False)
class Head:
    """A linear layer over final hidden states: sequence or token classification, or regression.

    Attributes:
        labels: in the order of the rows of ``weight``; of a regression the name of its one number.
        weight: ``[labels, hidden]``.
        bias: ``[labels]``.
        per_token: a label for every word (token classification), not one for the whole text.
        problem_type: one label (softmax), each label or not (sigmoid), or a number (the output itself).
    """

    labels: tuple[str, ...]
    weight: torch.Tensor = field(repr=False)
    bias: torch.Tensor = field(repr=False)
    per_token: bool = False
    problem_type: ProblemType = "single_label_classification"
