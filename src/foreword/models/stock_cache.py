"""`fault_of_stock_cache`: why what Transformers itself keeps of a text cannot stand in front of a request.

Asked of a causal model that no way carries: how its forward with something of ours failed says little about why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from foreword.errors import UnsupportedModel
from foreword.models.attention_implementation import eager_attention
from foreword.models.cached_model import cache_argument
from foreword.models.probe import FORWARD_ERRORS

FRONT, ROW = 5, 4
TOLERANCE = 1e-2
"""Share of the largest logit by which a right cache may miss: rounding in bfloat16."""


@torch.no_grad()
def fault_of_stock_cache(model: Any) -> str | None:
    """What is wrong with it in the model's own forward; ``None`` if nothing was found."""
    name, ids = type(model).__name__, _ids(model)
    front, row = ids[:, :FRONT], ids[:, FRONT:]
    with eager_attention(model):
        try:
            argument = cache_argument(model)
        except UnsupportedModel:
            return _without_cache(name, [field for field in model(input_ids=front) if field != "logits"])
        before = _tensors_of_modules(model)
        try:
            found = model(input_ids=front, use_cache=True)
        except FORWARD_ERRORS as error:
            return f"Transformers' own forward that keeps what a text leaves fails in {name} with {error!r}."
        cache = found.get(argument)
        if held := _changed(before, _tensors_of_modules(model)):
            return (
                f"{name} keeps what a text leaves in its modules ({held}), where requests behind several fronts cannot "
                "share a batch."
            )
        if cache is not None and not isinstance(cache, Cache | tuple | list):
            kind = type(cache).__name__
            return f"{name} keeps what a text leaves in {kind}, a cache of its own, and takes none of Transformers'."
        if isinstance(cache, Cache) and (own := cache.get_seq_length() - FRONT) > 0:
            return (
                f"{name} puts a prompt of its own, of {own} positions, in front of every text, so what a text leaves "
                "is not what stands in front of a request."
            )
        try:
            for token in row.split(1, dim=1):
                found = model(input_ids=token, use_cache=True, **{argument: found.get(argument)})
        except FORWARD_ERRORS as error:
            return f"{name} cannot go on behind what its own forward has kept of a text: it fails with {error!r}."
        joined = model(input_ids=ids, use_cache=False).logits[:, -1]
    difference = float((found.logits[:, -1] - joined).abs().max())
    if difference <= TOLERANCE * float(joined.abs().max()):
        return None
    return (
        f"{name}'s own cached forward differs from its forward of the joined text, by up to {difference:.3g} in the "
        "logits, so what it keeps of a text cannot stand in front of a request."
    )


def _without_cache(name: str, fields: Sequence[str]) -> str:
    if fields:
        return f"{name} keeps what a text leaves as {' and '.join(fields)}, and takes no cache of Transformers'."
    return f"{name} keeps nothing of a text that it has read, so every new token would run the whole front again."


def _ids(model: Any) -> Tensor:
    """``[1, FRONT + ROW]`` ids spread over the vocabulary."""
    rows = model.get_input_embeddings().weight.shape[0]
    return torch.tensor([[(rows // 3 + step * 7919) % rows for step in range(FRONT + ROW)]], device=model.device)


def _tensors_of_modules(model: Any) -> dict[str, Tensor]:
    """Tensors that modules hold beside their parameters and buffers."""
    return {
        f"{name}.{attribute}": value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor)
    }


def _changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that is not what it was."""
    return next((name for name, value in after.items() if value is not before.get(name)), None)
