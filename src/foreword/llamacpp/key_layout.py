"""How keys lie in llama.cpp's cache, against how a bank keeps them: rotated by halves, as Transformers does.

Converters of the ``llama`` architecture put the two numbers that are rotated together side by side, those of others
leave them half a head apart. Which it is, and that the angles are the model's, is proved at load: one token at several
places has keys that differ by their rotation alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreword.core import LayerShape
from foreword.errors import UnsupportedModel
from foreword.llamacpp.compat import Session
from foreword.llamacpp.sequence_state import SequenceState

TOLERATED = 0.02
"""Of the largest number in a layer's keys; float16 is a fortieth of it, another order of numbers a hundred times."""


@dataclass(frozen=True)
class KeyLayout:
    """Between a bank's keys and those of a cache.

    Attributes:
        shapes: of the model's layers.
        rotary: numbers of a head that are rotated, the first ones.
        theta: base of the angles.
        interleaved: numbers that are rotated together are neighbours in the cache.
    """

    shapes: tuple[LayerShape, ...]
    rotary: int
    theta: float
    interleaved: bool

    def cached(self, key: np.ndarray) -> np.ndarray:
        """``[heads, P, dim]`` of a bank as ``[P, heads * dim]`` of the cache."""
        rows = np.moveaxis(key, 0, 1)
        if self.interleaved:
            half, halves = self.rotary // 2, rows
            rows = halves.copy()
            rows[..., 0 : self.rotary : 2] = halves[..., :half]
            rows[..., 1 : self.rotary : 2] = halves[..., half : self.rotary]
        return rows.reshape(len(rows), -1)

    def kept(self, rows: np.ndarray, heads: int) -> np.ndarray:
        """Inverse of `cached`."""
        key = np.array(np.moveaxis(rows.reshape(len(rows), heads, -1), 1, 0))
        if self.interleaved:
            half, pairs = self.rotary // 2, key
            key = pairs.copy()
            key[..., :half] = pairs[..., 0 : self.rotary : 2]
            key[..., half : self.rotary] = pairs[..., 1 : self.rotary : 2]
        return key

    def rotated(self, key: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """``[heads, 1, dim]`` of position 0 at other positions: ``[heads, P, dim]``, by halves."""
        half = self.rotary // 2
        angles = positions[:, None] * self.theta ** (-np.arange(half) / half)
        first, second = key[..., :half], key[..., half : self.rotary]
        turned = [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
        rest = np.broadcast_to(key[..., self.rotary :], (len(key), len(positions), key.shape[-1] - self.rotary))
        return np.concatenate([*turned, rest], -1)

    def prove(self, session: Session, token: int, last: int) -> float:
        """Run one token alone at several places, and hold its keys in every layer against the bank's way of rotating.

        Args:
            last: the last position that a request may take.

        Returns: the largest difference that was found, as a share of the layer's largest number.

        Raises UnsupportedModel if the keys are not rotated so.
        """
        positions = np.array(sorted({0, 1, 2, 5, 17, last // 3, last}))
        found = [self._alone(session, token, int(position)) for position in positions]
        worst = 0.0
        for layer, shape in enumerate(self.shapes):
            kept = [self.kept(state.keys[layer], shape.kv_heads) for state in found]
            keys = np.concatenate(kept, 1).astype(np.float64)
            off = np.abs(keys - self.rotated(keys[:, :1], positions)).max() / max(np.abs(keys).max(), 1e-9)
            if not off <= TOLERATED:
                raise UnsupportedModel(
                    f"the keys of layer {layer} are not rotated as the bank's are (they differ by {off:.2g} of the "
                    "largest), so prefixes would be misread; convert the model to GGUF again, or use --engine embedded."
                )
            worst = max(worst, float(off))
        return worst

    def _alone(self, session: Session, token: int, position: int) -> SequenceState:
        rows = session.tokens
        rows.tokens[0], rows.positions[0], rows.sequences[0], rows.wanted[0], rows.count = token, position, 0, 1, 1
        session.decode(rows)
        widths = [shape.kv_heads * shape.key_dim for shape in self.shapes]
        values = [shape.kv_heads * shape.value_dim for shape in self.shapes]
        data = session.state(0)
        session.drop(0)
        return SequenceState.read(data, 0, widths, values, session.dtype)
