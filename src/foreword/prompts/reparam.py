"""Reparametrization: values are trained directly, or as the output of a small network that is not needed afterwards.

A prompt encoder gets a function from initial values to a network and its input. The network's output is exactly the
initial values at first. The papers start from the output of a random network instead, which loses the initialization:
the few hundred steps of a first run never make up for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Reparam = Callable[[Tensor], tuple[Tensor, nn.Module]]
"""Initial values ``[n, width]`` -> input ``[n, d]`` and a network that makes just those values of it."""


class TrainableValues(nn.Module):
    """Trainable values ``[n, width]`` in float32 or wider.

    Args:
        initial: ``[n, width]``; copied.
        reparam: the network; ``None`` trains the values directly.
    """

    def __init__(self, initial: Tensor, reparam: Reparam | None = None) -> None:
        super().__init__()
        initial = initial.detach().to(torch.promote_types(initial.dtype, torch.float32))
        inputs, network = (initial, nn.Identity()) if reparam is None else reparam(initial)
        self.inputs = nn.Parameter(inputs.clone())
        self.network = network.to(initial)

    def forward(self) -> Tensor:
        """The values as they are now, with gradients."""
        return self.network(self.inputs)


class ResidualReparam(nn.Module):
    """``initial`` plus the output of a network, which is 0 at first, since its last layer is.

    Args:
        initial: ``[n, width]``.
        network: ``[n, d] -> [n, k]``.
        last: ``[n, k] -> [n, width]``.
    """

    initial: Tensor

    def __init__(self, initial: Tensor, network: nn.Module, last: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("initial", initial.clone())
        self.network, self.last = network, last
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.initial + self.last(self.network(inputs))


class BiLSTM(nn.Module):
    """Two layers of LSTM over the soft tokens, forwards and backwards: ``[n, d] -> [n, 2 * hidden]``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.lstm(inputs)[0]


def lstm(hidden: int | None, generator: torch.Generator) -> Reparam:
    """P-tuning's encoder: LSTM, then Linear, ReLU, Linear. ``hidden`` is half the width by default, as in its code."""

    def reparam(initial: Tensor) -> tuple[Tensor, nn.Module]:
        width = initial.shape[1]
        each = hidden or width // 2
        with _seeded(generator):
            network = nn.Sequential(BiLSTM(width, each), nn.Linear(2 * each, 2 * each), nn.ReLU())
            return initial, ResidualReparam(initial, network, nn.Linear(2 * each, width))

    return reparam


def mlp(hidden: int | None, generator: torch.Generator) -> Reparam:
    """P-tuning's encoder without the LSTM: Linear, ReLU, Linear. ``hidden`` is the width by default."""

    def reparam(initial: Tensor) -> tuple[Tensor, nn.Module]:
        width = initial.shape[1]
        inner = hidden or width
        with _seeded(generator):
            network = nn.Sequential(nn.Linear(width, inner), nn.ReLU())
            return initial, ResidualReparam(initial, network, nn.Linear(inner, width))

    return reparam


def projection(width: int, hidden: int, generator: torch.Generator) -> Reparam:
    """Prefix tuning's MLP: an embedding ``[n, width]`` of its own for every position, then Linear, Tanh, Linear."""

    def reparam(initial: Tensor) -> tuple[Tensor, nn.Module]:
        with _seeded(generator):
            inputs = torch.randn(initial.shape[0], width).to(initial)
            network = nn.Sequential(nn.Linear(width, hidden), nn.Tanh())
            return inputs, ResidualReparam(initial, network, nn.Linear(hidden, initial.shape[1]))

    return reparam


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Seed PyTorch's global generator, which layers draw their weights from, and restore it at the end."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield
