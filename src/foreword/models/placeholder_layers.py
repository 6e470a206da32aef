"""What a model is asked before it is carried through placeholder tokens: that it can be, and why not.

That its numbers are right is shown by `foreword.models.probe.prove`, as for every way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from foreword.core import Batch, Front, KVPrefix, LayerShape
from foreword.errors import UnsupportedModel
from foreword.models.language_model import model_body
from foreword.models.neighbour_rows import NeighbourRows
from foreword.models.placeholder_model import PlaceholderModel
from foreword.models.projections import ProjectionHooks

FRONT, LONG, SHORT = 5, 9, 6
# Share of a prefix's effect that may be lost to rounding, in units of the dtype's own precision.
TOLERANCE = 64.0
FLOOR = 1e-3


def find_projections(model: Any) -> ProjectionHooks:
    """The projections of an encoder's layers. Raises UnsupportedModel if a prefix cannot stand in all of them."""
    name, ids = type(model).__name__, _ids(model)
    if not _reads_both_ways(model, ids):
        raise UnsupportedModel(
            f"{name} reads in one direction, so placeholder tokens would never see the request as a front does."
        )
    hooks = ProjectionHooks.of(model, lambda: model(input_ids=ids[None]), LONG)
    for layer in hooks.layers:
        if layer.columns < LONG:
            raise UnsupportedModel(
                f"{name} attends in {layer.attention} to {layer.columns} keys of {LONG} tokens, so its layers cannot "
                "share a prefix of one length."
            )
    return hooks


def find_neighbours(model: Any, hooks: ProjectionHooks) -> NeighbourRows:
    """What the layers read of the rows in front beside keys and values; see `NeighbourRows.find`."""
    return NeighbourRows.find(model, hooks, _ids(model))


def shapes(hooks: ProjectionHooks, neighbours: NeighbourRows) -> tuple[LayerShape, ...]:
    """What every layer keeps in front of a row."""
    pairs = zip(hooks.layers, neighbours.states, strict=True)
    return tuple(LayerShape(layer.kv_heads, layer.key_dim, layer.value_dim, states) for layer, states in pairs)


def check_placeholders(lm: PlaceholderModel) -> PlaceholderModel:
    """Check that every layer sees its keys and its values and no row sees anything else of the placeholders.

    Returns:
        the model, with `PlaceholderModel.pads` as its padded rows allow.

    Raises:
        UnsupportedModel: a layer or a module does not, by its name.
    """
    placeholder, other, *ordinary = _ordinary_tokens(lm)
    assert lm.hooks is not None
    lm = replace(lm, placeholder=placeholder, pads_itself=any(layer.columns > LONG for layer in lm.hooks.layers))
    ids = (ordinary or [placeholder])[:LONG]
    rows = [tuple(ids), tuple(ids[:SHORT])]
    prefix = lm.kept(Batch.from_rows(Front(), [ids[:FRONT]], device=lm.device))
    _check_layers(lm, prefix, rows[0])
    with torch.no_grad():
        found, without = _hidden(lm, prefix, rows[:1]), _hidden(lm, None, rows[:1])
        changed = _hidden(replace(lm, placeholder=other), prefix, rows[:1])
        tolerance = max(TOLERANCE * torch.finfo(lm.dtype).eps, FLOOR) * _distance(found, without)
        if not _distance(found, changed) <= tolerance:
            leak = _first_leak(lm, other, prefix, rows[0])
            raise UnsupportedModel(
                f"{type(lm.model).__name__} mixes neighbouring rows in {leak}, beside its attention, so a row sees "
                "more of the rows in front than their keys and values."
            )
        apart = torch.cat([_hidden(lm, prefix, [row]) for row in rows])
        return replace(lm, pads=_distance(_hidden(lm, prefix, rows), apart) <= tolerance)


def _ids(model: Any) -> Tensor:
    """``[LONG]`` token ids without padding, which some models (XLM) do not look at even inside a text."""
    weight = model.get_input_embeddings().weight
    ids = [token for token in range(len(weight)) if token != model.config.get_text_config().pad_token_id]
    return torch.tensor(ids[:LONG], device=weight.device)


def _reads_both_ways(model: Any, ids: Tensor) -> bool:
    """Whether the last token changes the first one's output. Raises UnsupportedModel if the first changes no other."""
    texts = ids.repeat(3, 1)
    texts[1, -1] = ids[1]
    texts[2, 0] = ids[1]
    with torch.no_grad():
        states = model_body(model)(input_ids=texts).last_hidden_state
    if torch.equal(states[0, -1], states[2, -1]):
        raise UnsupportedModel(
            f"no token sees another one in {type(model).__name__} as it runs here, so none would see a prefix; its "
            "attention may need a kernel that is not there."
        )
    return not torch.equal(states[0, 0], states[1, 0])


def _ordinary_tokens(lm: PlaceholderModel) -> list[int]:
    """Some token ids that a model does not treat apart, as it may padding or a mask."""
    padding = {getattr(module, "padding_idx", None) for module in lm.model.modules()}
    special = {*(getattr(lm.tokenizer, "all_special_ids", None) or ()), *padding, lm.model.config.pad_token_id}
    return [token for token in range(lm.vocab_size) if token not in special][: LONG + 2]


def _hidden(lm: PlaceholderModel, prefix: KVPrefix | None, rows: Sequence[Sequence[int]]) -> Tensor:
    batch = Batch.from_rows(Front(prefix), rows, device=lm.device)
    return lm.hidden_states(batch, torch.arange(batch.starts[-1], device=lm.device)).float()


def _distance(found: Tensor, reference: Tensor) -> float:
    return float((found - reference).square().mean().sqrt())


def _check_layers(lm: PlaceholderModel, prefix: KVPrefix, row: Sequence[int]) -> None:
    """Raise UnsupportedModel for a layer whose keys or values change nothing in the outputs of a row."""
    keys, values = (tuple(each.clone().requires_grad_() for each in side) for side in (prefix.keys, prefix.values))
    with torch.enable_grad():
        states = _hidden(lm, replace(prefix, keys=keys, values=values), [row])
        # Weighted, since a normalized row has the same sum of squares whatever it is.
        weights = torch.linspace(-1, 1, states.numel(), device=states.device).view_as(states)
        grads = torch.autograd.grad((states * weights).sum(), (*keys, *values), allow_unused=True)
    count = len(keys)
    assert lm.hooks is not None
    for index, grad in enumerate(grads):
        if grad is None or not grad.any():
            raise UnsupportedModel(
                f"{type(lm.model).__name__} does not read the {'keys' if index < count else 'values'} in front in its "
                f"layer {index % count} ({lm.hooks.layers[index % count].attention})."
            )


def _first_leak(lm: PlaceholderModel, other: int, prefix: KVPrefix, row: Sequence[int]) -> str:
    """Name of the first module whose output at a row changes with the placeholders."""
    runs: list[list[tuple[str, Tensor]]] = []
    names = {module: name for name, module in lm.model.named_modules() if name}

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 3 and output.shape[1] == FRONT + len(row):
            runs[-1].append((names[module], output[:, FRONT:]))

    handles = [module.register_forward_hook(look) for module in names]
    try:
        for placeholder in (lm.placeholder, other):
            runs.append([])
            _hidden(replace(lm, placeholder=placeholder), prefix, [row])
    finally:
        for handle in handles:
            handle.remove()
    changed = (name for (name, one), (_, other) in zip(*runs, strict=True) if not torch.allclose(one, other, atol=1e-4))
    return next(changed, "a module of its own")
