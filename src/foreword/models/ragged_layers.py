"""`RaggedLayers`: the self-attention layers of a model that runs on ragged rows, found by running it.

A model can run on ragged rows if each of its layers asks the registered attention function once, in the same order at
every forward, and hands the forward context on. That its numbers are right is shown by `foreword.models.probe.prove`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foreword.attention import ATTN_IMPLEMENTATION, ForwardContext, MaskFunction, RaggedAttention, keep_mask_functions
from foreword.core import Batch, Front, KVPrefix, LayerShape, ModelIdentity
from foreword.errors import UnsupportedModel
from foreword.models.language_model import hidden_states
from foreword.models.probe import FORWARD_ERRORS

TOKENS = 4
# Longer than any window, and no multiple of a chunk.
FAR = (1 << 24) + 12345


@dataclass(frozen=True)
class RaggedLayers:
    """Layers of a model in order of use.

    Attributes:
        numbers: of every self-attention module, one for each use in a forward.
        shapes: cache shape of each layer.
        causal: False for encoders.
    """

    numbers: dict[nn.Module, list[int]]
    shapes: tuple[LayerShape, ...]
    causal: bool

    @classmethod
    @torch.no_grad()
    def find(cls, model: Any, first_position: int) -> RaggedLayers:
        """Run a model twice: a text, and the same text behind its own keys and values.

        Args:
            first_position: position id of the first token.

        Raises:
            UnsupportedModel: it cannot run on ragged rows; the sentence says why.
        """
        name, config = type(model).__name__, model.config.get_text_config()
        if config._attn_implementation != ATTN_IMPLEMENTATION:
            raise UnsupportedModel(f"{name} chooses its attention from a fixed list, so it would never see a prefix.")
        _check_kind(config, name)
        numbers: dict[nn.Module, list[int]] = {}
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        ids = [torch.arange(TOKENS).tolist()]
        device = model.get_input_embeddings().weight.device
        try:
            text = Batch.from_rows(Front(), ids, device=device)
            attend = RaggedAttention(text, lambda layer, *pair: kept.__setitem__(layer, pair))
            first = ForwardContext(attend, numbers, register_layers=True, device=device)
            with keep_mask_functions():
                hidden_states(model, text, first, first_position)
            _check_layers(config, name, first)
            prefix = _as_prefix(kept)
            behind = Batch.from_rows(Front(prefix), ids, device=device)
            second = ForwardContext(RaggedAttention(behind), numbers, device=device)
            hidden_states(model, behind, second, first_position)
        except FORWARD_ERRORS as error:
            raise UnsupportedModel(f"{name} cannot carry a prefix: its forward failed with {error!r}.") from error
        if second.attended_layers != first.attended_layers:
            raise UnsupportedModel(
                f"{name} asked for prefixes of layers {second.attended_layers}, expected {first.attended_layers}."
            )
        causal = all(bool(getattr(module, "is_causal", True)) for module in numbers)
        return cls(numbers, prefix.model.layers, causal)


def _check_kind(config: Any, name: str) -> None:
    kinds = set(getattr(config, "layer_types", None) or ())
    if unknown := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise UnsupportedModel(f"{name} has {unknown[0]} layers, whose state no key/value prefix can carry.")


def _check_layers(config: Any, name: str, run: ForwardContext) -> None:
    count = config.num_hidden_layers
    if run.attended_layers != list(range(count)):
        raise UnsupportedModel(
            f"{name} has {count} layers, of which {len(set(run.attended_layers))} asked for a prefix "
            f"({len(run.attended_layers)} times); every self-attention layer must ask exactly once."
        )
    expected = [_window(mask) if mask is not None else _configured(config, i) for i, mask in enumerate(run.masks)]
    if run.windows != expected:
        raise UnsupportedModel(f"{name} asks for attention windows {run.windows}, its masks have {expected}.")


def _window(mask: MaskFunction) -> int | None:
    """Sliding window of a mask: how far back the first key is that a query far from the start does not see."""
    zero, query = torch.tensor(0), torch.tensor(FAR)
    near, far = 0, FAR
    if bool(mask(zero, zero, query, query - far)):
        return None
    while far - near > 1:
        middle = (near + far) // 2
        near, far = (middle, far) if bool(mask(zero, zero, query, query - middle)) else (near, middle)
    return far


def _configured(config: Any, layer: int) -> int | None:
    """Sliding window of a layer by the configuration, for models that hand no mask on."""
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        return None
    kinds = getattr(config, "layer_types", None)
    return None if kinds and kinds[layer] == "full_attention" else window


def _as_prefix(kept: dict[int, tuple[Tensor, Tensor]]) -> KVPrefix:
    keys, values = zip(*(kept[layer] for layer in sorted(kept)), strict=True)
    shapes = tuple(LayerShape(k.shape[0], k.shape[-1], v.shape[-1]) for k, v in zip(keys, values, strict=True))
    return KVPrefix(ModelIdentity("probe", 0, 0, shapes, "null", "", ""), keys, values, offset=TOKENS)
