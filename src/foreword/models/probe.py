"""The support probe: a model is supported if a prefix gives it the logits of the joined text, whatever its name.

Run once at load. It also numbers the layers and finds their cache shapes; `foreword doctor --model` prints its result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from foreword.attention import ATTN_IMPLEMENTATION, ForwardContext, RaggedAttention
from foreword.core import Batch, KVPrefix, LayerShape, ModelIdentity
from foreword.errors import UnsupportedModel
from foreword.models.language_model import forward, hidden_states

PREFIX_TOKENS = 11
REQUEST_TOKENS = 7
# Share of a prefix's effect that may be lost to rounding, in units of the dtype's own precision. SmolLM2 loses 5 in
# bfloat16 and float16 and 16 in float32, where a floor is put: less than a thousandth is rounding in any model.
TOLERANCE = 24.0
FLOOR = 1e-3
# Not all and not in order, so that a model which ignores the choice of rows is found out too.
REQUEST_ROWS = (6, 3, 0, 4)


@dataclass(frozen=True)
class ProbeResult:
    """Layers of a supported model, and how near it comes to the reference.

    Attributes:
        layers: number of every self-attention module, in order of use.
        shapes: cache shape of each layer.
        causal: False for encoders.
        difference: root mean square of the logits' differences between the prefix and the reference.
        effect: the same between no prefix and the reference, the scale for ``difference``.
    """

    layers: dict[nn.Module, int]
    shapes: tuple[LayerShape, ...]
    causal: bool
    difference: float
    effect: float


@torch.no_grad()
def probe_model(model: Any, first_position: int) -> ProbeResult:
    """Check that every self-attention layer of ``model`` uses a prefix exactly once and correctly.

    Args:
        first_position: position id of the first token.

    Raises:
        UnsupportedModel: it does not; the sentence says why.
    """
    name, config = type(model).__name__, model.config.get_text_config()
    _check_kind(config, name)
    ids = _probe_ids(model)
    rows = torch.tensor(REQUEST_ROWS, device=ids.device)
    layers: dict[nn.Module, int] = {}
    keys: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}

    def collect(layer: int, key: Tensor, value: Tensor) -> None:
        keys[layer], values[layer] = key, value

    try:
        text = _single_row(ids[:PREFIX_TOKENS])
        first = ForwardContext(RaggedAttention(text, collect), layers, register_layers=True)
        _run(model, text, torch.arange(PREFIX_TOKENS, device=ids.device), first, first_position)
        _check_layers(config, name, first)
        prefix = _as_prefix(keys, values)
        request = _single_row(ids[PREFIX_TOKENS:], prefix)
        second = ForwardContext(RaggedAttention(request), layers)
        with_prefix = _run(model, request, rows, second, first_position)
        bare = Batch((REQUEST_TOKENS,), (None,), (_emptied(prefix),), ids[PREFIX_TOKENS:])
        without = _run(model, bare, rows, ForwardContext(RaggedAttention(bare), layers), first_position)
        causal = all(bool(getattr(module, "is_causal", True)) for module in layers)
        reference = _reference(model, ids, causal)[rows]
    except (TypeError, AttributeError, KeyError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedModel(f"{name} cannot carry a prefix: its forward failed with {error!r}.") from error
    if second.attended_layers != first.attended_layers:
        raise UnsupportedModel(
            f"{name} asked for prefixes of layers {second.attended_layers}, expected {first.attended_layers}."
        )
    difference, effect = _distance(with_prefix, reference), _distance(without, reference)
    precision = torch.finfo(reference.dtype).eps
    rounding = 4 * precision * float(reference.float().square().mean().sqrt())
    if not difference <= max(max(TOLERANCE * precision, FLOOR) * effect, rounding):
        raise UnsupportedModel(
            f"{name} does not give the same logits with text as a prefix as with the joined text: they differ by "
            f"{difference:.3g}, where leaving the prefix out changes them by {effect:.3g}."
        )
    return ProbeResult(layers, prefix.model.layers, causal, difference, effect)


def has_lm_head(model: Any) -> bool:
    """Whether the model has an output matrix; a sentence encoder has none."""
    return model.get_output_embeddings() is not None


def _run(model: Any, batch: Batch, rows: Tensor, run: ForwardContext, first_position: int) -> Tensor:
    """Logits, or hidden states of a model without an output matrix."""
    if has_lm_head(model):
        return forward(model, batch, rows, run, first_position)
    return hidden_states(model, batch, run, first_position)[rows]


def _distance(found: Tensor, reference: Tensor) -> float:
    """Root mean square difference; in bfloat16 the largest difference would be one of rounding."""
    return float((found.float() - reference.float()).square().mean().sqrt())


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
    expected = _windows(config, count)
    if run.windows != expected:
        raise UnsupportedModel(f"{name} asks for attention windows {run.windows}, its config says {expected}.")


def _windows(config: Any, count: int) -> list[int | None]:
    """Sliding window of every layer, as Transformers' own masks would have it."""
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    kinds = getattr(config, "layer_types", None) or [None] * count
    return [None if kind == "full_attention" else window for kind in kinds]


def _probe_ids(model: Any) -> Tensor:
    """Ordinary-looking ids, spread over the vocabulary; the lowest are often special tokens."""
    embeddings = model.get_input_embeddings()
    vocabulary = embeddings.weight.shape[0]
    steps = torch.arange(PREFIX_TOKENS + REQUEST_TOKENS, device=embeddings.weight.device)
    return (vocabulary // 4 + steps * 7919) % (vocabulary - 5) + 5


def _single_row(ids: Tensor, prefix: KVPrefix | None = None) -> Batch:
    return Batch((len(ids),), (None,), (prefix,), ids)


def _as_prefix(keys: dict[int, Tensor], values: dict[int, Tensor]) -> KVPrefix:
    shapes = tuple(
        LayerShape(keys[layer].shape[0], keys[layer].shape[-1], values[layer].shape[-1]) for layer in sorted(keys)
    )
    identity = ModelIdentity("probe", 0, 0, shapes, "null", "", "")
    ordered = sorted(keys)
    return KVPrefix(identity, tuple(keys[i] for i in ordered), tuple(values[i] for i in ordered), offset=PREFIX_TOKENS)


def _emptied(prefix: KVPrefix) -> KVPrefix:
    """The prefix without positions but with its offset: what a model that loses its prefix computes."""
    keys = tuple(key[:, :0] for key in prefix.keys)
    values = tuple(value[:, :0] for value in prefix.values)
    return KVPrefix(prefix.model, keys, values, prefix.offset)


def _reference(model: Any, ids: Tensor, causal: bool) -> Tensor:
    """Expected outputs of the request's tokens by Transformers alone: of the joined text, or for encoders with
    ``past_key_values``."""
    out = (lambda output: output.logits[0]) if has_lm_head(model) else (lambda output: output.last_hidden_state[0])
    model.set_attn_implementation("eager")
    try:
        if causal:
            return out(model(input_ids=ids[None], use_cache=False))[PREFIX_TOKENS:]
        keys: dict[int, tuple[Tensor, Tensor]] = {}
        cache = DynamicCache()
        model.set_attn_implementation(ATTN_IMPLEMENTATION)
        layers: dict[nn.Module, int] = {}
        attend = RaggedAttention(_single_row(ids[:PREFIX_TOKENS]), lambda i, k, v: keys.__setitem__(i, (k, v)))
        run = ForwardContext(attend, layers, register_layers=True)
        model(input_ids=ids[None, :PREFIX_TOKENS], use_cache=False, foreword=run)
        for layer, (key, value) in keys.items():
            cache.update(key[None], value[None], layer)
        model.set_attn_implementation("eager")
        return out(model(input_ids=ids[None, PREFIX_TOKENS:], past_key_values=cache))
    finally:
        model.set_attn_implementation(ATTN_IMPLEMENTATION)
