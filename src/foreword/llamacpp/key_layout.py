"""`KeyLayout`: the order of a key's numbers in llama.cpp's cache and in a bank, which has Transformers' order.

A rotary embedding rotates pairs of numbers. Converters of the ``llama`` architecture put the two of a pair side by
side, those of others leave them half a head apart, as Transformers does. `KeyLayout.verify` proves at load which it is,
and that the angles are the model's: the keys of one token at several positions differ by their rotation alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreword.core import LayerShape
from foreword.errors import UnsupportedModel
from foreword.llamacpp.compat import Session
from foreword.llamacpp.sequence_state import SequenceState

TOLERANCE = 0.02
"""Relative to the largest number in a layer's keys. Float16 differs by a fortieth of it, another order by a hundred
times as much."""


@dataclass(frozen=True)
class KeyLayout:
    """Converts keys between a bank and the cache.

    Attributes:
        shapes: of the model's layers.
        rotary_dim: numbers of a head that are rotated, the first ones.
        rope_theta: base of the angles.
        interleaved: in the cache the two numbers of a pair are neighbours.
    """

    shapes: tuple[LayerShape, ...]
    rotary_dim: int
    rope_theta: float
    interleaved: bool

    def to_cache(self, key: np.ndarray) -> np.ndarray:
        """``[heads, P, dim]`` of a bank as ``[P, heads * dim]`` of the cache."""
        rows = np.moveaxis(key, 0, 1)
        if self.interleaved:
            half, halves = self.rotary_dim // 2, rows
            rows = halves.copy()
            rows[..., 0 : self.rotary_dim : 2] = halves[..., :half]
            rows[..., 1 : self.rotary_dim : 2] = halves[..., half : self.rotary_dim]
        return rows.reshape(len(rows), -1)

    def from_cache(self, rows: np.ndarray, heads: int) -> np.ndarray:
        """Inverse of `to_cache`."""
        key = np.array(np.moveaxis(rows.reshape(len(rows), heads, -1), 1, 0))
        if self.interleaved:
            half, pairs = self.rotary_dim // 2, key
            key = pairs.copy()
            key[..., :half] = pairs[..., 0 : self.rotary_dim : 2]
            key[..., half : self.rotary_dim] = pairs[..., 1 : self.rotary_dim : 2]
        return key

    def rotate(self, key: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Rotate keys of position 0 to other positions, by halves: ``[heads, 1, dim]`` to ``[heads, P, dim]``."""
        half = self.rotary_dim // 2
        angles = positions[:, None] * self.rope_theta ** (-np.arange(half) / half)
        first, second = key[..., :half], key[..., half : self.rotary_dim]
        turned = [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
        rest = np.broadcast_to(key[..., self.rotary_dim :], (len(key), len(positions), key.shape[-1] - self.rotary_dim))
        return np.concatenate([*turned, rest], -1)

    def verify(self, session: Session, token_id: int, max_position: int) -> float:
        """Run one token alone at several positions, and compare its keys in every layer with those of position 0,
        rotated as the bank's are.

        Args:
            max_position: the last position that a request may take.

        Returns: the largest difference, relative to the largest number in the layer's keys.

        Raises UnsupportedModel if it is beyond `TOLERANCE`.
        """
        positions = np.array(sorted({0, 1, 2, 5, 17, max_position // 3, max_position}))
        states = [self._run_alone(session, token_id, int(position)) for position in positions]
        worst = 0.0
        for layer, shape in enumerate(self.shapes):
            keys = np.concatenate([self.from_cache(s.keys[layer], shape.kv_heads) for s in states], 1)
            keys = keys.astype(np.float64)
            off = np.abs(keys - self.rotate(keys[:, :1], positions)).max() / max(np.abs(keys).max(), 1e-9)
            if not off <= TOLERANCE:
                raise UnsupportedModel(
                    f"the keys of layer {layer} are not rotated as the bank's are (they differ by {off:.2g} of the "
                    "largest), so prefixes would be misread; convert the model to GGUF again, or use --engine embedded."
                )
            worst = max(worst, float(off))
        return worst

    def _run_alone(self, session: Session, token_id: int, position: int) -> SequenceState:
        """The state of a sequence that holds one token."""
        batch = session.tokens
        batch.token_ids[0], batch.positions[0], batch.seq_ids[0] = token_id, position, 0
        batch.outputs[0], batch.count = 1, 1
        session.decode(batch)
        data = session.get_state(0)
        session.clear(0)
        key_widths = [shape.kv_heads * shape.key_dim for shape in self.shapes]
        value_widths = [shape.kv_heads * shape.value_dim for shape in self.shapes]
        return SequenceState.from_bytes(data, 0, key_widths, value_widths, session.dtype)
