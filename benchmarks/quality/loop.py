"""A plain training loop with the schedule of Foreword's own runs, for those who are not trained by its Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

EVALUATIONS = 5


def learn(
    rates: Sequence[tuple[Sequence[Tensor], float]],
    steps: int,
    *,
    backward: Callable[[int], None],
    changed: Callable[[], None],
    score: Callable[[], float],
    keep: Callable[[], None],
) -> None:
    """AdamW without decay, gradients cut to norm 1, a tenth of the steps up and then down along a cosine.

    Args:
        rates: what is learned, with its peak learning rates.
        steps: how many.
        backward: leaves the gradients of a step in what is learned.
        changed: called after every step.
        score: how good it is on dev, asked five times.
        keep: called when it is better than ever.
    """
    groups = [{"params": list(tensors), "lr": rate} for tensors, rate in rates if tensors]
    values = [tensor for tensors, _ in rates for tensor in tensors]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    every, best = -(-steps // EVALUATIONS), float("-inf")
    for step in range(steps):
        backward(step)
        torch.nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        changed()
        if (step + 1) % every == 0 or step + 1 == steps:
            found = score()
            if found > best:
                best = found
                keep()
