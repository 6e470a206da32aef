"""Two training steps on a tiny model: the loss moves, and its gradients are those that finite differences give."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foreword.bench.architectures.plain_pair import Found
from foreword.errors import BenchError

RATE = 1e-2
# Long steps meet curvature and other choices of experts, short ones rounding; a wrong gradient is wrong at both.
STEPS, SLOPE_TOLERANCE = (1e-2, 1e-3, 3e-4), 0.1


def two_steps(loss: Callable[[], Tensor], parameters: Sequence[Tensor], check_gradients: Callable[[], None]) -> Found:
    """Learn, and compare the first gradient with the loss's own slope; the ``difference`` is a share of it.

    Args:
        check_gradients: called after every backward pass.

    Raises:
        BenchError: the gradient is not that of the loss.
    """
    optimizer, losses, slope = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0), [], 0.0
    for step in range(3):
        value = loss()
        losses.append(float(value.detach()))
        if step == 2:
            break
        optimizer.zero_grad()
        value.backward()
        check_gradients()
        if step == 0:
            slope = check_slope(loss, parameters)
        optimizer.step()
    return {"difference": slope, "losses": [round(each, 4) for each in losses]}


def check_slope(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> float:
    """How far the loss's slope along the gradient is from what the gradient says, as a share. Raises BenchError."""
    gradients = [each.grad if each.grad is not None else torch.zeros_like(each) for each in parameters]
    norm = float(torch.stack([each.square().sum() for each in gradients]).sum().sqrt())
    wrong = min(abs(_slope(loss, parameters, gradients, step / norm) / norm**2 - 1) for step in STEPS)
    if not wrong < SLOPE_TOLERANCE:
        raise BenchError(f"the gradient differs from finite differences of the loss by {wrong:.0%}.")
    return wrong


@torch.no_grad()
def _slope(loss: Callable[[], Tensor], parameters: Sequence[Tensor], along: Sequence[Tensor], step: float) -> float:
    """Of the loss, by its values ``step`` times ``along`` on either side of the parameters."""
    values = []
    for by in (step, -step):
        for parameter, direction in zip(parameters, along, strict=True):
            parameter += by * direction
        values.append(float(loss()))
        for parameter, direction in zip(parameters, along, strict=True):
            parameter -= by * direction
    return (values[0] - values[1]) / (2 * step)
