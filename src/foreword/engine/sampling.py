"""Sampling from one row of logits, in numpy, so that engines without PyTorch sample as the embedded one does.

Every function takes the parameters and the random generator of one request, so an answer does not depend on the batch.
"""

from __future__ import annotations

import numpy as np

from foreword.core import SamplingParams

MIN_TEMPERATURE = 1e-5
"""Smaller temperatures would overflow float32; at this one the answer is greedy already."""


def make_generator(params: SamplingParams) -> np.random.Generator | None:
    """Random generator of one request, seeded by ``params.seed``; ``None`` for a greedy request."""
    if params.temperature == 0:
        return None
    return np.random.default_rng(None if params.seed is None else params.seed % 2**64)


def sample_token(logits: np.ndarray, params: SamplingParams, generator: np.random.Generator) -> int:
    """One token id drawn from ``logits [vocab]``, some of which may be minus infinity."""
    # One uniform number against the running sum; a choice by numpy would check and copy the probabilities first.
    sums = filtered_probs(logits, params).cumsum(dtype=np.float64)
    return min(int(sums.searchsorted(generator.random() * sums[-1], side="right")), len(sums) - 1)


def filtered_probs(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Probabilities ``[vocab]`` float32 after temperature, top-k, top-p and then min-p, in Transformers' order."""
    logits = (logits - logits.max()) / np.float32(max(params.temperature, MIN_TEMPERATURE))
    if 0 < params.top_k < len(logits):
        logits = np.where(logits < np.partition(logits, -params.top_k)[-params.top_k], -np.inf, logits)
    probs = np.exp(logits)
    probs /= probs.sum()
    if params.top_p < 1.0:
        probs = _apply_top_p(probs, params.top_p)
    if params.min_p > 0.0:
        probs = np.where(probs >= params.min_p * probs.max(), probs, 0)
        probs /= probs.sum()
    return probs


def top_indices(row: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest numbers of ``row``, largest first; among equals the lowest index first."""
    if count < len(row):
        # All that are at least as large as the last of them, so that ties do not depend on the partition.
        indices = np.flatnonzero(row >= np.partition(row, -count)[-count]) if count else np.empty(0, dtype=np.int64)
    else:
        indices = np.arange(len(row))
    return indices[np.argsort(-row[indices], kind="stable")][:count]


def _apply_top_p(probs: np.ndarray, top_p: float) -> np.ndarray:
    """Nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751): keep the most probable tokens up to mass ``top_p``."""
    # The largest few nearly always hold the mass; sorting a whole vocabulary takes thirty times as long.
    indices = top_indices(probs, min(1024, len(probs)))
    if probs[indices].sum() < top_p:
        indices = top_indices(probs, len(probs))
    largest = probs[indices]
    # The token that crosses the mass is kept, and one always is: a mass below 1e-45 is zero in float32.
    kept = indices[: max(1, int((largest.cumsum() - largest < top_p).sum()))]
    nucleus = np.zeros_like(probs)
    nucleus[kept] = probs[kept]
    return nucleus / nucleus.sum()
