"""Positions of a model: how many it has, and where its own count begins."""

from __future__ import annotations

from typing import Any


def max_positions(config: Any) -> int | None:
    """Number of positions whose rotations do not depend on the rest of the batch; ``None`` without a limit.

    LongRoPE changes the frequencies of all tokens as soon as one stands beyond the original length: a long request
    would change the others' answers, and the keys of a stored prefix would no longer fit.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = rope.values() if all(isinstance(kind, dict) for kind in rope.values()) else [rope]
    limits = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"]
    limits.append(getattr(config, "max_position_embeddings", None))
    return min((limit for limit in limits if limit), default=None)


def first_position(model: Any) -> int:
    """RoBERTa and its kin count positions from ``padding_idx + 1``."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0
