"""`rotate`: move the keys of a prefix to other positions by rotary embeddings (Su et al. 2021, arXiv:2104.09864).

Rotary positions are relative, so keys and request may move together without changing a logit. Imported checkpoints
whose requests count from 0, and keys cut out of a longer text, are moved here once. How a layer rotates its keys
is measured on the model: the same tokens are run at two positions, and the frequencies and layout that explain the
difference are used. Nothing is looked up by the model's name; a difference that nothing explains is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from foreword.core import Batch, KVPrefix
from foreword.core.json_reader import parse_json
from foreword.errors import UnsupportedModel, UsageError
from foreword.models import LanguageModel
from foreword.prompts.lower import empty_prefix

TOKENS = 8
SHIFT = 61
# Share of the difference that may stay unexplained, in units of the dtype's own precision. SmolLM2 leaves at most 1.6
# in bfloat16; a floor is put for float32. The wrong layout leaves more than the whole difference.
TOLERANCE = 8.0
FLOOR = 1e-3

RotaryLayout = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``key [..., 2n]``, ``cos [P, n]``, ``sin [P, n]`` -> ``[..., 2n]``."""


def rotate_half(key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate number ``i`` with number ``i + n``: Llama, GPT-NeoX and most others."""
    a, b = key.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def rotate_every_two(key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate number ``2i`` with number ``2i + 1`` (interleaved): GPT-J, GLM, Cohere."""
    a, b = key[..., 0::2], key[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotary embedding of one layer.

    Attributes:
        frequencies: ``[n]`` radians a position; the first ``2n`` numbers of a key are rotated.
        layout: which numbers are rotated together.
    """

    frequencies: Tensor
    layout: RotaryLayout

    def __call__(self, key: Tensor, by: Tensor) -> Tensor:
        """``key [kv_heads, P, key_dim]`` rotated by ``by [P]`` positions, in float32 or wider.

        The length of a key does not change, so a scaling of attention that is part of it is never applied twice.
        """
        wide = key.to(torch.promote_types(key.dtype, torch.float32))
        angles = by[:, None].to(wide) * self.frequencies.to(wide)
        turned = 2 * self.frequencies.shape[0]
        return torch.cat([self.layout(wide[..., :turned], angles.cos(), angles.sin()), wide[..., turned:]], dim=-1)


def rotate(lm: LanguageModel, prefix: KVPrefix, by: int | Sequence[int]) -> KVPrefix:
    """The same prefix with its keys moved by ``by`` positions; layers without positions stay as they are.

    Args:
        lm: the model that the prefix belongs to.
        prefix: its request's first position does not move with it.
        by: positions to move towards the end (below 0: the front), one number or one for each of the ``P`` positions.

    Raises:
        UnsupportedModel: learned absolute positions, or rotations that the model's own frequencies do not explain.
        UsageError: positions beyond those for which the model's frequencies are fixed.
    """
    if lm.identity.keeps_states:
        raise UnsupportedModel(
            f"{lm.name} keeps states, which have no position and cannot move; learn the prefix where it is used, or "
            "publish the text itself."
        )
    shifts = [by] * prefix.length if isinstance(by, int) else list(by)
    if len(shifts) != prefix.length:
        raise UsageError(f"a prefix of {prefix.length} positions needs as many shifts, got {len(shifts)}.")
    if not any(shifts):
        return prefix
    _check_fixed_frequencies(lm, max(map(abs, shifts)) + prefix.length)
    moved = torch.tensor(shifts, device=prefix.keys[0].device)
    keys = tuple(
        key if rotation is None else rotation(key, moved).to(key.dtype)
        for key, rotation in zip(prefix.keys, rotations(lm), strict=True)
    )
    # The keys are no longer those of its tokens at the first positions, so a slice would not be exact.
    return replace(prefix, keys=keys, token_ids=None)


@torch.no_grad()
def rotations(lm: LanguageModel) -> tuple[Rotation | None, ...]:
    """The measured rotary layout of each layer; ``None`` for one without positions. Raises UnsupportedModel."""
    shift = SHIFT if lm.context is None else min(SHIFT, lm.context - TOKENS)
    still, moved = _keys_at_position(lm, 0), _keys_at_position(lm, shift)
    candidates = [
        Rotation(own, layout) for own, layout in product(_rope_frequencies(lm), (rotate_half, rotate_every_two))
    ]
    pairs = zip(still, moved, strict=True)
    return tuple(_fit_rotation(lm, layer, a, b, shift, candidates) for layer, (a, b) in enumerate(pairs))


def _fit_rotation(
    lm: LanguageModel, layer: int, still: Tensor, moved: Tensor, shift: int, candidates: list[Rotation]
) -> Rotation | None:
    tolerated = max(TOLERANCE * torch.finfo(lm.dtype).eps, FLOOR)
    effect = _rms(moved - still)
    if effect <= tolerated * _rms(still):
        return None
    by = torch.full((TOKENS,), shift, device=still.device)
    fitting = [rotation for rotation in candidates if 2 * rotation.frequencies.shape[0] <= still.shape[-1]]
    if not fitting:
        raise UnsupportedModel(
            f"{lm.name} has learned absolute positions, so keys cannot move to others; learn the prefix where it is "
            "used."
        )
    left = [_rms(rotation(still, by) - moved) / effect for rotation in fitting]
    if min(left) > tolerated:
        raise UnsupportedModel(
            f"layer {layer} of {lm.name} does not turn its keys as any of its frequencies say ({min(left):.2g} of the "
            "change is left over), so keys cannot move to other positions; learn the prefix where it is used."
        )
    return fitting[left.index(min(left))]


def _keys_at_position(lm: LanguageModel, position: int) -> list[Tensor]:
    """Keys ``[kv_heads, TOKENS, key_dim]`` of every layer in float32 for tokens that stand alone at ``position``.

    A token that sees only itself attends to its own value wherever it stands, so that all layers get the same inputs at
    every position and their keys differ by nothing but the rotation.
    """
    steps = torch.arange(TOKENS, device=lm.device)
    ids = (lm.identity.vocab_size // 4 + steps * 7919) % lm.identity.vocab_size
    start = replace(empty_prefix(lm), offset=position)
    alone = [lm.kept(Batch((1,), (None,), (start,), token[None])).keys for token in ids]
    return [torch.cat(layer, dim=1).float() for layer in zip(*alone, strict=True)]


def _rope_frequencies(lm: LanguageModel) -> list[Tensor]:
    """All frequencies that the model keeps; some have one set for each kind of layer, in one module or in several."""
    return [buffer.float() for name, buffer in lm.model.named_buffers() if name.endswith("inv_freq")]


def _rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())


def _check_fixed_frequencies(lm: LanguageModel, positions: int) -> None:
    """Some models change all frequencies as soon as a token of the batch stands far enough from the start."""
    rope = parse_json(lm.identity.rope) or {}
    kinds = rope.values() if rope and all(isinstance(kind, dict) for kind in rope.values()) else [rope]
    changing = {kind.get("rope_type") for kind in kinds} & {"dynamic", "longrope"}
    if changing and lm.context is not None and positions > lm.context:
        raise UsageError(
            f"{lm.name} changes its frequencies ({changing.pop()}) beyond position {lm.context}, so keys cannot be "
            f"moved to position {positions}; use a shorter prefix."
        )
