"""`PlainPair`: a model in Foreword and in plain Transformers, for checks that both say the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from foreword.models import LanguageModel

# Tokens of the fronts and the rows behind them: several lengths, with nothing in front of one.
LENGTHS = ((9, 6), (0, 3), (21, 1), (5, 9))
# Of the logits' differences, in units of the largest logit.
TOLERANCE = 1e-3

Found = Mapping[str, Any]
"""The largest ``difference``, or why there is none: ``refused`` or ``failed``, and a sentence."""


@dataclass(frozen=True)
class PlainPair:
    """A model that Foreword loaded, and the same weights in a model that never heard of it."""

    lm: LanguageModel
    stock: Any

    @cached_property
    def texts(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Fronts and rows of `LENGTHS`, of random ordinary tokens."""
        generator = torch.Generator().manual_seed(7)

        def draw(count: int) -> tuple[int, ...]:
            return tuple(torch.randint(5, 250, (count,), generator=generator).tolist())

        return [(draw(front), draw(row)) for front, row in LENGTHS]


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest expected value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def said(error: BaseException) -> str:
    """An error of a library in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:200]}" if lines else type(error).__name__
