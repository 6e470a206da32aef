"""Perplexity of reference texts under a task that generates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from foreword.engine.protocol import EngineProtocol
from foreword.text.prompt import Prompt

if TYPE_CHECKING:
    import torch


def target_logprobs(
    engine: EngineProtocol, prompts: Sequence[Prompt], targets: Sequence[Sequence[int]]
) -> Sequence[torch.Tensor | np.ndarray]:
    """Log-probability of every token of each target behind its prompt, ``[tokens]`` for each of them.

    Args:
        prompts: in front of the targets.
        targets: token ids, none empty, that fit into the context behind their prompts.
    """
    return engine.token_logprobs(list(map(_append_target, prompts, targets)))


def perplexity(logprobs: Sequence[torch.Tensor | np.ndarray]) -> float:
    """``exp`` of the mean negative log-likelihood of a token, over all tokens of all references.

    Args:
        logprobs: of the tokens of every reference, natural logarithms.

    Returns:
        At least 1; infinity if it is too large for a float.
    """
    every = np.concatenate([np.asarray(each, dtype=np.float64) for each in logprobs])
    try:
        return math.exp(-float(every.mean()))
    except OverflowError:
        return math.inf


def _append_target(prompt: Prompt, target: Sequence[int]) -> Prompt:
    """The prompt with a target behind it, and the places where the target's tokens are predicted."""
    last = len(prompt.token_ids) - 1
    return replace(
        prompt, token_ids=(*prompt.token_ids, *target), output_indices=tuple(range(last, last + len(target)))
    )
