"""`model_pooling`: how a model's embeddings are made, as its sentence-transformers configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from foreword.core import Pooling
from foreword.core.json_reader import read_json_file
from foreword.errors import ModelError

MODULES = "modules.json"
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
_MODES: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "cls": "cls",
    "mean": "mean",
    "lasttoken": "last",
}
"""By the flag that older versions set, or the one name that newer ones write."""


def model_pooling(source: str, *, causal: bool) -> Pooling | None:
    """The pooling that a model was trained with.

    Args:
        source: the model's folder or Hub id.
        causal: whether it is a causal model.

    Returns:
        what ``modules.json`` of sentence-transformers names; ``last`` for a causal model and ``mean`` for an encoder
        without one; ``None`` if it names a pooling or a further layer that is not known here.
    """
    modules = _read_json(source, MODULES)
    if modules is None:
        return default_pooling(causal=causal)
    modules = modules if isinstance(modules, list) else [None]
    kinds = {str(module.get("type", "")).rpartition(".")[2]: module for module in modules if isinstance(module, dict)}
    if len(kinds) != len(modules) or "Pooling" not in kinds or not kinds.keys() <= set(_KNOWN_MODULES):
        return None
    config = _read_json(source, f"{kinds['Pooling'].get('path', '1_Pooling')}/config.json")
    config = config if isinstance(config, dict) else {}
    flags = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    named = [config["pooling_mode"]] if isinstance(config.get("pooling_mode"), str) else flags
    return _MODES.get(named[0]) if len(named) == 1 else None


def default_pooling(*, causal: bool) -> Pooling:
    """The pooling of a model that says nothing: only the last token of a causal model has seen the whole text."""
    return "last" if causal else "mean"


def _read_json(source: str, name: str) -> Any:
    """The content of a file of a model, or ``None`` if it has none."""
    file = cached_file(
        source,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return None
    return read_json_file(Path(file), error=ModelError, mend="download it again")
