"""Which attention a loaded Transformers model runs: changed for the whole model, or for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def of_text(config: Any, name: str) -> str | dict[str, str]:
    """An ``attn_implementation`` for the text side of a model that also reads images or sound.

    Its other parts keep theirs: they may know a few kinds alone, and never run here.
    """
    text = config.get_text_config()
    keys = [key for key in config.sub_configs if getattr(config, key, None) is text]
    return {"": name, keys[0]: name} if keys else name


def set_attention_implementation(model: Any, name: str) -> None:
    """Change the attention of a model, as ``model.set_attn_implementation`` does.

    Where a model has one attention alone, Transformers changes nothing, and its masks would still be made for the one
    that it was loaded with (for ``foreword``: none at all); there the configuration is set, which decides of masks.
    """
    if model._can_set_attn_implementation():
        model.set_attn_implementation(of_text(model.config, name))
    if _used(model) != name:
        model.config._attn_implementation = of_text(model.config, name)


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Transformers' own plain attention, then again the one before."""
    used = _used(model)
    set_attention_implementation(model, "eager")
    try:
        yield
    finally:
        set_attention_implementation(model, used)


def _used(model: Any) -> str:
    return model.config.get_text_config()._attn_implementation
