"""Which attention a loaded Transformers model runs: changed for the whole model, or for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def set_attention_implementation(model: Any, name: str) -> None:
    """Change the attention of a model, as ``model.set_attn_implementation`` does.

    Where a model has one attention alone, Transformers changes nothing, and its masks would still be made for the one
    that it was loaded with (for ``foreword``: none at all); there the configuration is set, which decides of masks.
    """
    if model._can_set_attn_implementation():
        model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        model.config._attn_implementation = name


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Transformers' own plain attention, then again the one before."""
    used = model.config._attn_implementation
    set_attention_implementation(model, "eager")
    try:
        yield
    finally:
        set_attention_implementation(model, used)
