"""The text side of a model that also reads images, video or sound: all of it that is run here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils.hub import cached_file

from foreword.core.json_reader import parse_json, read_document
from foreword.models.attention_implementation import eager_attention


def processor_chat_template(source: str) -> str | None:
    """The chat template of a processor's own file, where older checkpoints keep the only one; ``None`` without it.

    Args:
        source: a folder or a Hub id.
    """
    file = cached_file(
        source,
        "chat_template.json",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return None
    try:
        found = parse_json(read_document(Path(file)))
    except (OSError, ValueError):
        return None
    template = found.get("chat_template") if isinstance(found, dict) else None
    return template if isinstance(template, str) else None


def drop_other_towers(model: Any) -> None:
    """Take the modules that a text never runs through out of a model, in place, so that their memory is freed.

    These stand beside its decoder: towers and projectors for other inputs. A model that runs into one of them with
    text alone keeps them all.
    """
    decoder = model.get_decoder()
    if decoder in (model, model.base_model):
        return
    needed = {decoder, model.get_input_embeddings(), model.get_output_embeddings()}
    beside = [*_beside(model, needed)]
    for parent, name, _ in beside:
        setattr(parent, name, None)
    try:
        with torch.no_grad(), eager_attention(model):
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    except (AttributeError, TypeError):
        for parent, name, module in beside:
            setattr(parent, name, module)


def _beside(parent: nn.Module, needed: set[Any]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Children, with parent and name, of which no part is needed, at any depth outside what is needed."""
    found = []
    for name, child in parent.named_children():
        if child in needed:
            continue
        if needed.isdisjoint(child.modules()):
            found.append((parent, name, child))
        else:
            found += _beside(child, needed)
    return found
