"""`ProjectionHooks`: keys and values of a model's attention layers, read and replaced as they leave its projections.

Whatever a layer does with its keys and values afterwards (rotation, windows, relative positions, ALiBi) stays its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from foreword.adapters import first_tensor, linear_width, with_first_tensor
from foreword.errors import UnsupportedModel

_ATTRIBUTE = "_foreword_projections"
_QUERY, _KEY, _VALUE = {"query", "q"}, {"key", "k"}, {"value", "v"}
_FUSED = re.compile(r"(to_)?(w?qkv|query_key_value|in_proj|c_attn|w_pack)(_proj|_lin)?", re.IGNORECASE)
_HEAD_DIMS = ("head_dim", "attention_head_size", "key_value_proj_dim", "d_head", "d_kv")
_HEADS = ("num_key_value_heads", "num_kv_heads", "num_attention_heads", "num_heads", "n_heads", "n_head")

Record = Callable[[int, Tensor, Tensor], None]
"""Gets ``(layer, key [R, S, key_width], value [R, S, value_width])`` as the layer's attention sees them."""


@dataclass(frozen=True)
class ProjectedLayer:
    """One use of an attention module in a forward.

    Attributes:
        attention: name of the module that holds the projections.
        kv_heads: heads of its keys and values; ``key_width = kv_heads * key_dim``, one head after another.
        key_dim, value_dim: width of one head's key and value.
        cross: whether it had other numbers of keys and of queries in the run that numbered the layers.
        columns: ``S`` of its keys ``[R, S, key_width]`` in that run.
    """

    attention: str
    kv_heads: int
    key_dim: int
    value_dim: int
    cross: bool
    columns: int


@dataclass(frozen=True, eq=False)
class KeysValuesAt:
    """Keys and values for ``K`` places of one layer's padded ``[R, S]`` rows; gradients flow into them.

    Attributes:
        rows, columns: ``[K]`` the places.
        keys: ``[K, key_width]``.
        values: ``[K, value_width]``.
    """

    rows: Tensor
    columns: Tensor
    keys: Tensor
    values: Tensor


@dataclass(eq=False)
class _Attention:
    """An attention module, its projections, and the numbers of its layers in order of use.

    Attributes:
        tokens_first: its projections give ``[S, R, width]``.
    """

    name: str
    module: nn.Module
    key: nn.Module
    value: nn.Module
    query: nn.Module
    key_columns: Tensor | None = None
    value_columns: Tensor | None = None
    tokens_first: bool = False
    layers: list[int] = field(default_factory=list)


@dataclass(eq=False)
class _Forward:
    """State of one forward: what is replaced, who records, and how often each attention module was used."""

    replaced: Mapping[int, KeysValuesAt]
    record: Record | None
    uses: dict[_Attention, int] = field(default_factory=dict)
    waiting: dict[_Attention, set[nn.Module]] = field(default_factory=dict)
    keys: dict[_Attention, Tensor] = field(default_factory=dict)
    done: set[tuple[int, str]] = field(default_factory=set)


class ProjectionHooks:
    """Reads and replaces the keys and values of every attention layer in a module tree.

    An attention module is one with children that project queries, keys and values (``query/key/value``, ``q/k/v``,
    ``k_proj``, ``k_lin``, ``to_k``, ...), or one child that projects all three (``Wqkv``, ``in_proj``, ...), of which
    the columns that other rows read are found. Self-attention of encoders and decoders and cross-attention are found
    alike; the keys of a cross-attention are of the encoder's rows ``[R, S, ...]``, and its layer says ``cross``.

    Layers are numbered in order of use within one forward: a module that runs several times is several layers
    (`layers`). How heads lie in a projection's output is in `ProjectedLayer`: a prefix's ``keys [kv_heads, P,
    key_dim]`` go in as ``keys.transpose(0, 1).flatten(1)``.

    >>> hooks = ProjectionHooks.of(model, lambda: model(input_ids=ids))
    >>> with hooks.replaced({0: KeysValuesAt(rows, columns, keys, values)}):
    ...     model(input_ids=padded, attention_mask=mask)

    A forward need not use all layers: an encoder may run apart from its decoder, and a decoder with a cache projects
    the encoder's rows only at its first step.

    Attributes:
        layers: what each layer is, in order of use.
    """

    layers: tuple[ProjectedLayer, ...]

    @classmethod
    def of(cls, model: nn.Module, run: Callable[[], Any], tokens: int | None = None) -> ProjectionHooks:
        """The hooks of a model, kept as an attribute of it; see the constructor."""
        hooks = vars(model).get(_ATTRIBUTE)
        if hooks is None:
            hooks = cls(model, run, tokens)
            setattr(model, _ATTRIBUTE, hooks)
        return hooks

    def __init__(self, model: nn.Module, run: Callable[[], Any], tokens: int | None = None) -> None:
        """Find the projections.

        Args:
            model: in eval mode.
            run: one forward of one row through all layers; in an encoder-decoder with rows of different lengths, which
                tell cross-attention.
            tokens: of that row, where the model may pad it by itself.

        Raises:
            UnsupportedModel: there is no attention, or its keys and values are not those of a projection.
        """
        # The first forward of some models replaces their attention modules (BigBird's for short texts).
        with torch.no_grad():
            run()
        self._attentions = list(_find_attentions(model))
        if not self._attentions:
            raise UnsupportedModel(
                f"{type(model).__name__} has no attention: no module of it projects queries, keys and values, so there "
                "is nothing that a prefix could be put in front of."
            )
        self.layers = tuple(_number_layers(model, self._attentions, run, tokens))
        # Projections for what did not run (Longformer's global attention) beside those that did.
        used = {attention.module for attention in self._attentions if attention.layers}
        idle = next((attention for attention in self._attentions if attention.module not in used), None)
        if idle is not None:
            raise UnsupportedModel(
                f"{type(model).__name__} does not run {idle.name} or its projections as modules, so this attention "
                "would never see a prefix."
            )
        self._attentions = [attention for attention in self._attentions if attention.layers]

    @contextmanager
    def replaced(self, places: Mapping[int, KeysValuesAt], record: Record | None = None) -> Iterator[None]:
        """Replace and record keys and values in the forward inside the block.

        The layers must not run again outside it: gradient checkpointing does, in the backward pass, and is refused.

        Args:
            places: by number of the layer; each of these must run.
            record: called once a layer that runs, after its keys and values were replaced.

        Raises:
            UnsupportedModel: a layer of ``places`` did not run its projections.
        """
        forward = _Forward(places, record)
        handles = []
        for attention in self._attentions:
            handles.append(attention.module.register_forward_pre_hook(self._begin(forward, attention)))
            for projection in {attention.key, attention.value}:
                # The last of its hooks: an adapter of the tokens leaves the prefix alone.
                handles.append(projection.register_forward_hook(self._project(forward, attention)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        missing = [layer for layer in places if not forward.done >= {(layer, "key"), (layer, "value")}]
        if missing:
            raise UnsupportedModel(
                f"the attention {self.layers[missing[0]].attention} did not run its key and value projections as "
                "modules, so it would never see a prefix."
            )

    def _begin(self, forward: _Forward, attention: _Attention) -> Callable[..., None]:
        def begin(*_: Any) -> None:
            forward.uses[attention] = forward.uses.get(attention, -1) + 1
            forward.waiting[attention] = {attention.key, attention.value}

        return begin

    def _project(self, forward: _Forward, attention: _Attention) -> Callable[..., Tensor | None]:
        def project(module: nn.Module, _: Any, output: Any) -> Any:
            # Only the first call in a layer is of the rows: DeBERTa projects its relative positions through the same.
            if module not in forward.waiting.get(attention, ()):
                return None
            forward.waiting[attention].remove(module)
            layer = attention.layers[forward.uses[attention]]
            rows = _rows(attention, module, first_tensor(output))
            place = forward.replaced.get(layer)
            if place is not None:
                rows = _replace(attention, module, rows, place)
                forward.done.update((layer, part) for part in _parts(attention, module))
            if forward.record is not None:
                self._record(forward, forward.record, attention, layer, module, rows)
            return with_first_tensor(output, _rows(attention, module, rows)) if place is not None else None

        return project

    @staticmethod
    def _record(
        forward: _Forward, record: Record, attention: _Attention, layer: int, module: nn.Module, rows: Tensor
    ) -> None:
        if attention.key_columns is not None and attention.value_columns is not None:
            record(layer, rows[..., attention.key_columns], rows[..., attention.value_columns])
        elif attention in forward.keys:
            other = forward.keys.pop(attention)
            record(layer, *((rows, other) if module is attention.key else (other, rows)))
        else:
            forward.keys[attention] = rows


def _parts(attention: _Attention, module: nn.Module) -> tuple[str, ...]:
    if attention.key is attention.value:
        return "key", "value"
    return ("key",) if module is attention.key else ("value",)


def _replace(attention: _Attention, module: nn.Module, rows: Tensor, place: KeysValuesAt) -> Tensor:
    where = (place.rows, place.columns)
    if attention.key_columns is None or attention.value_columns is None:
        new = place.keys if module is attention.key else place.values
        return rows.index_put(where, new.to(rows.dtype))
    fused = rows[where].index_copy(1, attention.key_columns, place.keys.to(rows.dtype))
    return rows.index_put(where, fused.index_copy(1, attention.value_columns, place.values.to(rows.dtype)))


def _rows(attention: _Attention, module: nn.Module, output: Tensor) -> Tensor:
    """``[R, S, width]`` from what a projection gives, and back: a convolution's rows are its last dimension."""
    if attention.tokens_first:
        return output.transpose(0, 1)
    return output.transpose(1, 2) if isinstance(module, nn.Conv1d) else output


def _find_attentions(model: nn.Module) -> Iterator[_Attention]:
    for name, module in model.named_modules():
        # Rounding beside a projection (I-BERT's ``query_activation``) has no weights.
        children = {
            child: each
            for child, each in module.named_children()
            if linear_width(each) is not None or next(each.parameters(), None) is not None
        }
        for child in children:
            key, value = _beside(children, child, _KEY), _beside(children, child, _VALUE)
            if key is not None and value is not None:
                yield _Attention(name, module, key, value, children[child])
            elif _FUSED.fullmatch(child):
                fused = children[child]
                yield _Attention(name, module, fused, fused, fused)


def _beside(children: Mapping[str, nn.Module], query: str, words: set[str]) -> nn.Module | None:
    """The child that is called as a projection of queries is, with another word for queries; ``None`` without one."""
    parts = query.lower().split("_")
    if not _QUERY & set(parts):
        return None
    names = ("_".join(word if part in _QUERY else part for part in parts) for word in words)
    return next((children[name] for name in names if name in children), None)


def _number_layers(
    model: nn.Module, attentions: Sequence[_Attention], run: Callable[[], Any], tokens: int | None
) -> list[ProjectedLayer]:
    """Number the uses of all attention modules in one forward, and find the columns of fused projections."""
    layers: list[ProjectedLayer] = []
    seen: dict[_Attention, dict[nn.Module, Tensor]] = {}
    handles = []

    def begin(attention: _Attention) -> Callable[..., None]:
        return lambda *_: seen.__setitem__(attention, {})

    def project(attention: _Attention) -> Callable[..., Tensor | None]:
        def look(module: nn.Module, _: Any, output: Any) -> Any:
            if attention not in seen or module in seen[attention]:
                return None
            projected = first_tensor(output)
            if any(isinstance(each, Tensor) for each in output[1:] if isinstance(output, tuple)):
                raise UnsupportedModel(
                    f"{type(model).__name__} computes the keys of {attention.name} in integers with a scale beside "
                    "(quant_mode), and a prefix is of real numbers; give it with quant_mode false."
                )
            if not isinstance(projected, Tensor) or projected.dim() != 3:
                raise UnsupportedModel(
                    f"{type(model).__name__} projects the keys of {attention.name} to something else than padded rows "
                    "[R, S, width], so a prefix's place in them is not known."
                )
            # There is one row.
            attention.tokens_first = projected.shape[1] == 1 < projected.shape[0]
            fresh = projected.detach().requires_grad_()
            seen[attention][module] = _rows(attention, module, fresh)
            # A copy, since some layers go on in place.
            return with_first_tensor(output, _rows(attention, module, seen[attention][module]).clone())

        return look

    def end(attention: _Attention) -> Callable[..., None]:
        def number(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs = seen.pop(attention)
            if not outputs.keys() >= {attention.key, attention.value, attention.query}:
                return
            if attention.key is attention.value and attention.key_columns is None:
                _find_columns(model, attention, outputs[attention.key], output, tokens)
            elif attention.key is not attention.value and _reads(output, outputs[attention.query], tokens).any():
                raise UnsupportedModel(
                    f"{type(model).__name__} mixes the queries of several rows in {attention.name}, as landmarks or "
                    "blocks of them do, so a row sees more of the rows in front than their keys and values."
                )
            attention.layers.append(len(layers))
            layers.append(_describe(model, attention, outputs))

        return number

    try:
        for attention in attentions:
            handles.append(attention.module.register_forward_pre_hook(begin(attention)))
            handles.append(attention.module.register_forward_hook(end(attention)))
            for projection in {attention.query, attention.key, attention.value}:
                handles.append(projection.register_forward_hook(project(attention)))
        with torch.enable_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return layers


def _describe(model: nn.Module, attention: _Attention, outputs: Mapping[nn.Module, Tensor]) -> ProjectedLayer:
    key, value, query = outputs[attention.key], outputs[attention.value], outputs[attention.query]
    key_width = key.shape[-1] if attention.key_columns is None else len(attention.key_columns)
    value_width = value.shape[-1] if attention.value_columns is None else len(attention.value_columns)
    heads = _kv_heads(model, attention.module, key_width, value_width)
    return ProjectedLayer(
        attention.name,
        heads,
        key_width // heads,
        value_width // heads,
        cross=key.shape[1] != query.shape[1],
        columns=key.shape[1],
    )


def _kv_heads(model: nn.Module, module: nn.Module, key_width: int, value_width: int) -> int:
    """Heads of a layer's keys: from the width of a head that its module names, else from the configuration."""
    config = getattr(module, "config", None) or getattr(model, "config", None)
    dims = (getattr(module, name, None) for name in _HEAD_DIMS)
    counts = [key_width // dim for dim in dims if isinstance(dim, int) and dim and key_width % dim == 0]
    counts += [getattr(owner, name, None) for owner in (module, config) for name in _HEADS]
    fits = (n for n in counts if isinstance(n, int) and n and key_width % n == 0 and value_width % n == 0)
    return next(fits, 1)


def _find_columns(model: nn.Module, attention: _Attention, fused: Tensor, output: Any, tokens: int | None) -> None:
    """Find the columns of keys and values in a projection of all three: those that other rows read.

    Queries, keys and values lie behind one another, or so in each head or group of heads; the layout in which no row
    reads the queries of another is the right one.
    """
    read = _reads(output, fused, tokens)
    width = len(read)
    for count in dict.fromkeys(_head_counts(model, attention.module)):
        dim = _head_dim(attention.module, width, count)
        for groups in dict.fromkeys((1, (width // dim - count) // 2)):
            parts = _split(width, groups, count, dim)
            if parts is None:
                continue
            query, key, value = parts
            if not read[query].any() and read[key].any() and read[value].any():
                attention.key_columns, attention.value_columns = key.to(fused.device), value.to(fused.device)
                return
    raise UnsupportedModel(
        f"{type(model).__name__} projects queries, keys and values of {attention.name} at once, in an order in which "
        "they could not be told apart."
    )


def _reads(output: Any, projected: Tensor, tokens: int | None) -> Tensor:
    """How much each column of a projection's rows changes the last of ``tokens`` rows of its attention's output."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    # A model that pools has fewer rows.
    last = (projected.shape[1] if tokens is None else min(tokens, projected.shape[1])) - 1
    row = output[..., last] if output.shape[1] != projected.shape[1] else output[:, last]
    if not row.requires_grad:
        raise UnsupportedModel(
            "an attention layer runs without gradients (reversible layers do), so what it reads cannot be found, and "
            "nothing could be learned in front of it."
        )
    (read,) = torch.autograd.grad(row.float().square().sum(), projected, retain_graph=True, allow_unused=True)
    return read[:, :last].abs().amax(dim=(0, 1)) if read is not None else projected.new_zeros(projected.shape[-1])


def _head_counts(model: nn.Module, module: nn.Module) -> Iterator[int]:
    for owner in (module, getattr(module, "config", None), getattr(model, "config", None)):
        for name in _HEADS[2:]:
            count = getattr(owner, name, None)
            if isinstance(count, int) and count:
                yield count


def _head_dim(module: nn.Module, width: int, heads: int) -> int:
    dims = (getattr(module, name, None) for name in _HEAD_DIMS)
    return next((dim for dim in dims if isinstance(dim, int) and dim), width // (3 * heads))


def _split(width: int, groups: int, heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Columns of queries, keys and values in ``groups`` equal pieces, each queries, then keys, then values."""
    kv = width - heads * dim
    if groups < 1 or kv <= 0 or kv % (2 * groups) or (heads * dim) % groups:
        return None
    columns = torch.arange(width).view(groups, -1)
    query, each = heads * dim // groups, kv // (2 * groups)
    return tuple(part.flatten() for part in columns.split([query, each, each], dim=1))  # pyright: ignore
