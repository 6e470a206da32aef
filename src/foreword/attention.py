"""The attention function that Foreword registers with Transformers: every layer attends to prefixes and ragged rows.

`register` makes it known to Transformers as ``foreword``; a `LanguageModel` loads its model with that name and hands
every forward a `ForwardContext`, which reaches each layer as an extra keyword argument. Training, evaluation and the
embedded engine differ only in the function that it carries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from foreword.core import Batch, KVPrefix
from foreword.dense_attention import AttentionSpec, grouped_query_attention
from foreword.errors import TrainingError, UnsupportedModel, UsageError

ATTN_IMPLEMENTATION = "foreword"

UNSUPPORTED_KWARGS = ("position_bias", "head_mask")
"""Keywords that change the result of attention in a way that is not computed here. A model that passes one of them
(T5's position bias) is refused rather than served wrongly."""


MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of Transformers: whether, in a row and a head, a query sees a key, by their positions."""

_keeps_mask_functions: ContextVar[bool] = ContextVar("_keeps_mask_functions", default=False)


class AttentionFn(Protocol):
    """Attention of the new tokens of one layer, over everything they may see; tensors have no batch dimension."""

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spec: AttentionSpec,
        window: int | None,
        causal: bool,
    ) -> Tensor:
        """Attend.

        Args:
            layer: index of the layer.
            query: ``[heads, N, key_dim]`` of the new tokens.
            key, value: ``[kv_heads, N, dim]`` of the new tokens.
            spec: scale, soft cap and sinks.
            window: sliding window; a query sees keys less than ``window`` positions back.
            causal: whether a query sees only keys up to its own position.

        Returns:
            ``[heads, N, value_dim]``.
        """
        ...


@dataclass
class ForwardContext:
    """State of one forward, which every attention layer receives as the keyword ``foreword``.

    Attributes:
        attend: the attention of this forward.
        layers: numbers of every self-attention module, one for each use in a forward; filled in order of use when
            ``register_layers`` is set.
        register_layers: whether this is the first forward of a freshly loaded model.
        attended_layers: layers that attended, in order, for the support probe.
        windows: sliding window of each of these.
        masks: which keys Transformers' own mask shows each of these, where `keep_mask_functions` was on.
        uses: how often each module has attended.
        grad: whether gradients were recorded when the forward began.
        device: where prefixes, masks and caches are; layers on other devices send their keys there, and take what was
            attended to back. ``None`` if all layers are on one device.
    """

    attend: AttentionFn
    layers: dict[nn.Module, list[int]]
    register_layers: bool = False
    attended_layers: list[int] = field(default_factory=list)
    windows: list[int | None] = field(default_factory=list)
    masks: list[MaskFunction | None] = field(default_factory=list)
    uses: defaultdict[nn.Module, int] = field(default_factory=lambda: defaultdict(int))
    grad: bool = field(default_factory=torch.is_grad_enabled)
    device: torch.device | None = None

    def layer(self, module: nn.Module) -> int:
        """Number of this use of a self-attention module, which several layers may share.

        Raises:
            UnsupportedModel: it was not registered.
            TrainingError: it runs more often than when it was registered.
        """
        use = self.uses[module]
        self.uses[module] += 1
        if self.register_layers:
            self.layers.setdefault(module, []).append(len(self.attended_layers))
        numbers = self.layers.get(module)
        if numbers is None:
            raise UnsupportedModel(
                f"{type(module).__name__} is not one of the self-attention layers seen when the model was loaded; "
                "models that change their layers between forwards cannot carry a prefix."
            )
        if len(numbers) == 1:
            return numbers[0]  # checkpointing runs it again
        if use >= len(numbers):
            raise TrainingError(
                f"{type(module).__name__} is shared by {len(numbers)} layers, which gradient checkpointing would run "
                "again in another order; leave out --checkpointing."
            )
        return numbers[use]


def prefixed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    foreword: ForwardContext | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: ``query [1, heads, N, key_dim]`` -> ``[1, N, heads, value_dim]``.

    Raises:
        UnsupportedModel: the layer lost the `ForwardContext`, or needs a form of attention that is not computed here.
        TrainingError: gradients would be lost to reentrant checkpointing.
    """
    name = type(module).__name__
    if foreword is None:
        raise UnsupportedModel(
            f"{name} does not hand extra keyword arguments on to its attention, so it would never see a prefix; "
            "choose a model that `foreword doctor --model` accepts."
        )
    unsupported = [option for option in UNSUPPORTED_KWARGS if extra.get(option) is not None]
    if unsupported:
        raise UnsupportedModel(f"{name} uses attention with {unsupported[0]}, which Foreword does not compute yet.")
    if dropout:
        raise TrainingError(f"{name} asks for attention dropout {dropout}; a frozen model runs in eval mode.")
    if foreword.grad and not torch.is_grad_enabled():
        raise TrainingError(
            "reentrant gradient checkpointing would lose the gradients of the prefix; enable checkpointing with "
            "use_reentrant=False."
        )
    layer = foreword.layer(module)
    foreword.attended_layers.append(layer)
    foreword.windows.append(sliding_window)
    foreword.masks.append(getattr(attention_mask, "mask_function", None))
    causal = bool(getattr(module, "is_causal", True))
    home = foreword.device if foreword.device is not None else query.device
    sinks = s_aux.to(home) if s_aux is not None else None
    spec = AttentionSpec(scaling if scaling is not None else query.shape[-1] ** -0.5, softcap, sinks)
    own_query, own_key, own_value = (each[0].to(home) for each in (query, key, value))
    out = foreword.attend(layer, own_query, own_key, own_value, spec, sliding_window, causal)
    return out.transpose(0, 1)[None].contiguous().to(query.device), None


def register() -> None:
    """Register ``attn_implementation="foreword"`` with Transformers, with a mask function that builds nothing."""
    AttentionInterface.register(ATTN_IMPLEMENTATION, prefixed_attention)
    AttentionMaskInterface.register(ATTN_IMPLEMENTATION, _make_mask)


@contextmanager
def keep_mask_functions() -> Iterator[None]:
    """In forwards inside the block, layers hand on which keys Transformers' own masks would show (`ForwardContext`)."""
    token = _keeps_mask_functions.set(True)
    try:
        yield
    finally:
        _keeps_mask_functions.reset(token)


def _make_mask(q_length: int, kv_length: int, mask_function: MaskFunction, **_: Any) -> Tensor | None:
    """No mask, or one that shows everything and carries the function that the model's own would be made of."""
    if not _keeps_mask_functions.get():
        return None
    mask = torch.ones(1, 1, q_length, kv_length, dtype=torch.bool)
    mask.mask_function = mask_function  # type: ignore[attr-defined]
    return mask


@dataclass
class _PaddedGroup:
    """Sequences of a batch behind contexts of one shape, padded to the longest of them inside attention only.

    Attributes:
        prefixes: the stored prefix of every context ``0..F-1``, all of one length; or none.
        ancestors: ``[F, A]`` indices of the ancestors' tokens in every context, eldest first; ``None`` without any.
        context: ``[R]`` the context of every sequence; ``None`` if they share the only one.
        tokens: ``[R, T]`` indices of the sequences' tokens; short rows repeat their last token.
        lengths: ``[R]`` tokens of every sequence.
        valid: ``[R, T]`` True where `tokens` is not padding.
    """

    prefixes: tuple[KVPrefix, ...]
    ancestors: Tensor | None
    context: Tensor | None
    tokens: Tensor
    lengths: Tensor
    valid: Tensor

    @property
    def context_length(self) -> int:
        """Tokens of every context."""
        stored = self.prefixes[0].length if self.prefixes else 0
        return stored + (self.ancestors.shape[1] if self.ancestors is not None else 0)

    def gather(self, own: Tensor, stored: Sequence[Tensor]) -> Tensor:
        """Keys or values of the sequences: their context, then every row's own tokens.

        Args:
            own: ``[kv_heads, N, dim]`` of the batch's tokens.
            stored: ``[kv_heads, P, dim]`` of every prefix.

        Returns:
            ``[R, kv_heads, A + T, dim]``.
        """
        rows = own[:, self.tokens].transpose(0, 1)
        parts = [torch.stack([each.to(own.dtype) for each in stored])] if stored else []
        if self.ancestors is not None:
            parts.append(own[:, self.ancestors].transpose(0, 1))
        if self.context is None:
            shared = [part.expand(len(rows), -1, -1, -1) for part in parts]
        else:
            shared = [part.index_select(0, self.context) for part in parts]
        return torch.cat([*shared, rows], dim=2) if shared else rows

    def mask(self, window: int | None, causal: bool) -> Tensor | None:
        """``[R, 1, T, A + T]`` over ``A`` context tokens and the row's own; None if everything is visible."""
        rows, length = self.tokens.shape
        context = self.context_length
        own = torch.arange(length, device=self.tokens.device)
        # A padded query repeats the row's last token, so it may look where that one may: no row is all masked.
        queries = context + torch.minimum(own[None, :], self.lengths[:, None] - 1)
        keys = torch.arange(context + length, device=self.tokens.device)
        if causal:
            visible = keys[None, None, :] <= queries[:, :, None]
        else:
            visible = (keys[None, None, :] < context + self.lengths[:, None, None]).expand(rows, length, -1)
        if window is not None:
            visible = visible & (keys[None, None, :] > queries[:, :, None] - window)
            if not causal:
                visible = visible & (keys[None, None, :] < queries[:, :, None] + window)
        return None if bool(visible.all()) else visible[:, None]


class RaggedAttention:
    """Attention over a `Batch`, differentiable in the prefixes and in everything else.

    Sequences behind contexts of the same length are one padded product (the padding is never run through the rest of
    the model), whichever prefixes these are; a context's keys are never copied into the batch, and their gradients sum
    over the rows.

    Args:
        batch: the layout; its prefixes may carry gradients.
        on_keys_values: called with ``(layer, key [kv_heads, N, key_dim], value [kv_heads, N, value_dim])`` of the
            batch's own tokens before they are used. Keys and values are collected here and never from a cache object,
            since Transformers builds none under checkpointing.
    """

    def __init__(self, batch: Batch, on_keys_values: Callable[[int, Tensor, Tensor], None] | None = None) -> None:
        if batch.num_computed_tokens is not None:
            raise UsageError("a batch with computed tokens needs the attention of the engine that holds them.")
        self._on_keys_values = on_keys_values
        self._groups = [_pad(batch, members) for members in _group_by_context(batch)]
        self._order = torch.argsort(torch.cat([group.tokens[group.valid] for group in self._groups]))
        self._masks: dict[tuple[int | None, bool], list[Tensor | None]] = {}

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spec: AttentionSpec,
        window: int | None,
        causal: bool,
    ) -> Tensor:
        if self._on_keys_values is not None:
            self._on_keys_values(layer, key, value)
        if (window, causal) not in self._masks:
            self._masks[window, causal] = [group.mask(window, causal) for group in self._groups]
        outs = []
        for group, mask in zip(self._groups, self._masks[window, causal], strict=True):
            keys = group.gather(key, [prefix.keys[layer] for prefix in group.prefixes])
            values = group.gather(value, [prefix.values[layer] for prefix in group.prefixes])
            out = grouped_query_attention(query[:, group.tokens].transpose(0, 1), keys, values, mask, spec)
            outs.append(out.transpose(1, 2)[group.valid])
        return torch.cat(outs)[self._order].transpose(0, 1)


@dataclass(frozen=True)
class _Context:
    """Everything in front of a sequence.

    Attributes:
        prefix: stored keys and values, first; or ``None``.
        parent: index of the sequence that it continues, or ``None``.
        spans: ``(start, end)`` of every ancestor among the batch's tokens, eldest first.
    """

    prefix: KVPrefix | None
    parent: int | None
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, batch: Batch, index: int) -> _Context:
        """The context of sequence ``index``."""
        spans: list[tuple[int, int]] = []
        eldest = index
        while (parent := batch.parents[eldest]) is not None:
            spans.insert(0, (batch.starts[parent], batch.starts[parent + 1]))
            eldest = parent
        prefix = batch.prefixes[eldest]
        return cls(prefix if prefix is not None and prefix.length else None, batch.parents[index], tuple(spans))

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens of the prefix, and of all ancestors; contexts of one shape can be stacked."""
        stored = self.prefix.length if self.prefix is not None else 0
        return stored, sum(end - start for start, end in self.spans)


def _group_by_context(batch: Batch) -> list[list[tuple[int, _Context]]]:
    """Sequences in groups with contexts of one shape and similar lengths; each group is one padded product."""
    by_shape: dict[tuple[int, int], list[tuple[int, _Context]]] = {}
    contexts: dict[tuple[int | None, int], _Context] = {}
    for index, (parent, prefix) in enumerate(zip(batch.parents, batch.prefixes, strict=True)):
        if (parent, id(prefix)) not in contexts:
            contexts[parent, id(prefix)] = _Context.of(batch, index)
        context = contexts[parent, id(prefix)]
        by_shape.setdefault(context.shape, []).append((index, context))
    groups: list[list[tuple[int, _Context]]] = []
    for members in by_shape.values():
        members.sort(key=lambda member: batch.lengths[member[0]])
        group = [members[0]]
        for member in members[1:]:
            # Padding costs at most as much again as the shortest row; longer rows start a product of their own.
            if batch.lengths[member[0]] > 2 * batch.lengths[group[0][0]]:
                groups.append(group)
                group = []
            group.append(member)
        groups.append(group)
    return groups


def _pad(batch: Batch, group: Sequence[tuple[int, _Context]]) -> _PaddedGroup:
    device = batch.token_ids.device
    lengths = torch.tensor([batch.lengths[index] for index, _ in group], device=device)
    starts = torch.tensor([batch.starts[index] for index, _ in group], device=device)
    steps = torch.arange(int(lengths.max()), device=device)
    contexts = list(dict.fromkeys(context for _, context in group))
    ancestors = [[index for span in context.spans for index in range(*span)] for context in contexts]
    number = {context: index for index, context in enumerate(contexts)}
    return _PaddedGroup(
        prefixes=tuple(context.prefix for context in contexts if context.prefix is not None),
        ancestors=torch.tensor(ancestors, device=device) if ancestors[0] else None,
        context=torch.tensor([number[each] for _, each in group], device=device) if len(contexts) > 1 else None,
        tokens=starts[:, None] + torch.minimum(steps[None, :], lengths[:, None] - 1),
        lengths=lengths,
        valid=steps[None, :] < lengths[:, None],
    )
