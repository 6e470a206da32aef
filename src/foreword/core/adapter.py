"""`Adapter`: low-rank changes of a frozen model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from foreword.core.overview import Overview, WithOverview

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of one linear layer: ``x W^T`` becomes ``x W^T + scale * x down^T up^T``.

    Attributes:
        down: ``[rank, in]``.
        up: ``[out, rank]``.
    """

    down: torch.Tensor = field(repr=False)
    up: torch.Tensor = field(repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class Adapter(WithOverview):
    """Low-rank changes of a frozen model's linear layers (LoRA, Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        layers: one change for every changed module, by its name in the Transformers model, such as
            ``model.layers.0.self_attn.q_proj``.
        scale: multiplies every change (``alpha / rank``).
    """

    layers: Mapping[str, LowRank]
    scale: float = 1.0

    def overview(self) -> Overview:
        """Its rank and size; no values."""
        size = f"{len(self.layers)} layers, {self.nbytes:,} bytes"
        return Overview(f"Adapter of rank {self.rank}", {"size": size, "scale": self.scale})

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return sum(t.nbytes for pair in self.layers.values() for t in (pair.down, pair.up))

    @property
    def rank(self) -> int:
        """The largest rank among its layers."""
        return max((int(pair.down.shape[0]) for pair in self.layers.values()), default=0)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Adapter:
        """The same adapter with its factors in another dtype or on another device; itself if nothing changes."""
        moved = {
            name: LowRank(pair.down.to(dtype=dtype, device=device), pair.up.to(dtype=dtype, device=device))
            for name, pair in self.layers.items()
        }
        if all(moved[name].down is pair.down and moved[name].up is pair.up for name, pair in self.layers.items()):
            return self
        return Adapter(moved, self.scale)
