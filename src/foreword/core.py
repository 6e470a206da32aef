"""The nouns that every room may import: identity, prefix, batch, sampling parameters, task.

Torch is imported for type checkers only, so that reading a bank's index or printing help stays quick.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from foreword.errors import ModelMismatch, UsageError

if TYPE_CHECKING:
    import torch

Bos = Literal["prefix", "request", "none"]
Kind = Literal["learned", "system", "prompt"]
Combine = Literal["mean", "vote"]


@dataclass(frozen=True)
class LayerShape:
    """What one self-attention layer keeps for a position: ``kv_heads`` keys of ``key_dim`` and as many values of
    ``value_dim``."""

    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True)
class ModelIdentity:
    """What must agree before a prefix may stand in front of a model.

    Attributes:
        architecture: Transformers class name, such as ``LlamaForCausalLM``.
        hidden_size: width of an input embedding.
        vocab_size: rows of the input embedding.
        layers: shape of every self-attention layer, in the order in which the model runs them.
        rope: rotary parameters as canonical JSON (``null`` for models without).
        tokenizer: SHA-256 fingerprint of the tokenizer.
        weights: SHA-256 over tensor names, shapes and sampled stored values.
        lineage: digests of the files that this model was converted from; any one in common will do.
    """

    architecture: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerShape, ...]
    rope: str
    tokenizer: str
    weights: str
    lineage: tuple[str, ...] = ()

    def check(self, model: ModelIdentity, what: str, *, allow_other_weights: bool = False) -> None:
        """Raise `ModelMismatch` unless a prefix made for ``self`` may serve ``model``.

        Args:
            model: identity of the loaded model.
            what: how to name the prefix in the error, such as ``task 'sst2'``.
            allow_other_weights: accept another weights fingerprint (quantized copies), never another shape.
        """
        for name in ("architecture", "hidden_size", "vocab_size", "layers", "rope", "tokenizer"):
            made, found = getattr(self, name), getattr(model, name)
            if made != found:
                raise ModelMismatch(
                    f"{what} was made for another model: {name} is {_short(made)}, the loaded model has "
                    f"{_short(found)}; load the model it was made for, or train it again on this one."
                )
        related = {self.weights, *self.lineage} & {model.weights, *model.lineage}
        if not related and not allow_other_weights:
            raise ModelMismatch(
                f"{what} was made for other weights of {self.architecture}: fingerprint {self.weights[:12]}, the "
                f"loaded model has {model.weights[:12]}; load the model it was made for, or pass "
                "--allow-other-weights if this is a converted copy of it."
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
            "layers": [[s.kv_heads, s.key_dim, s.value_dim] for s in self.layers],
            "rope": self.rope,
            "tokenizer": self.tokenizer,
            "weights": self.weights,
            "lineage": list(self.lineage),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelIdentity:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            architecture=str(data["architecture"]),
            hidden_size=int(data["hidden_size"]),
            vocab_size=int(data["vocab_size"]),
            layers=tuple(LayerShape(*map(int, shape)) for shape in data["layers"]),
            rope=str(data["rope"]),
            tokenizer=str(data["tokenizer"]),
            weights=str(data["weights"]),
            lineage=tuple(map(str, data["lineage"])),
        )


def _short(value: object) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], LayerShape):
        first = value[0]
        return f"{len(value)} layers of {first.kv_heads} x {first.key_dim}/{first.value_dim}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


@dataclass(frozen=True, eq=False)
class KVPrefix:
    """Key and value tensors of all layers for ``P`` positions: the one thing that every prompt becomes.

    Attributes:
        model: identity of the model that the tensors belong to.
        keys: one ``[kv_heads, P, key_dim]`` a layer, already rotated to positions ``0..P-1``.
        values: one ``[kv_heads, P, value_dim]`` a layer.
        offset: position of the request's first token (``P`` for every causal model).
        token_ids: the ``P`` token ids of a static prefix; ``None`` for a learned one, which is never sliced.
        bos: whether the beginning-of-text token is inside the prefix, is put in front of the request, or is
            not used at all.
    """

    model: ModelIdentity
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    offset: int
    token_ids: tuple[int, ...] | None = None
    bos: Bos = "request"

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.model.layers) or len(self.values) != len(self.model.layers):
            raise UsageError(
                f"a prefix for {self.model.architecture} needs {len(self.model.layers)} layers, got "
                f"{len(self.keys)} keys and {len(self.values)} values."
            )
        for index, (shape, key, value) in enumerate(zip(self.model.layers, self.keys, self.values, strict=True)):
            expected_key = (shape.kv_heads, self.length, shape.key_dim)
            expected_value = (shape.kv_heads, self.length, shape.value_dim)
            if tuple(key.shape) != expected_key or tuple(value.shape) != expected_value:
                raise UsageError(
                    f"layer {index} of the prefix must be keys {expected_key} and values {expected_value}, got "
                    f"{tuple(key.shape)} and {tuple(value.shape)}."
                )
        if len({tensor.dtype for tensor in (*self.keys, *self.values)}) > 1:
            raise UsageError("keys and values of a prefix must share one dtype; convert them first.")
        if self.token_ids is not None and len(self.token_ids) != self.length:
            raise UsageError(f"a static prefix of {self.length} positions has {len(self.token_ids)} token ids.")

    @property
    def length(self) -> int:
        """``P``, the number of positions."""
        return int(self.keys[0].shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all key and value tensors."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that changes what a request would see: geometry, token ids and values."""
        import torch

        header = [
            self.offset,
            self.token_ids,
            self.bos,
            self.model.to_json(),
            [str(k.dtype) for k in self.keys],
        ]
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
        for tensor in (*self.keys, *self.values):
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def head(self, length: int) -> KVPrefix:
        """The first ``length`` positions of a static prefix: keys are causal, so a slice is exact.

        Raises:
            UsageError: a learned prefix is never sliced.
        """
        if length == self.length:
            return self
        if self.token_ids is None:
            raise UsageError(f"a learned prefix of {self.length} positions cannot be cut to {length}.")
        keys = tuple(key[:, :length] for key in self.keys)
        values = tuple(value[:, :length] for value in self.values)
        return KVPrefix(self.model, keys, values, length, self.token_ids[:length], self.bos)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> KVPrefix:
        """The same prefix with its tensors in another dtype or on another device; itself if nothing changes."""
        keys = tuple(k.to(dtype=dtype, device=device) for k in self.keys)
        values = tuple(v.to(dtype=dtype, device=device) for v in self.values)
        if all(new is old for new, old in zip((*keys, *values), (*self.keys, *self.values), strict=True)):
            return self
        return KVPrefix(self.model, keys, values, self.offset, self.token_ids, self.bos)


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of one linear layer: ``x W^T`` becomes ``x W^T + scale * x down^T up^T``.

    Attributes:
        down: ``[rank, in]``.
        up: ``[out, rank]``.
    """

    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank changes of a frozen model's linear layers (LoRA, Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        layers: one change for every changed module, by its name in the Transformers model, such as
            ``model.layers.0.self_attn.q_proj``.
        scale: multiplies every change (``alpha / rank``).
    """

    layers: Mapping[str, LowRank]
    scale: float = 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return sum(t.numel() * t.element_size() for pair in self.layers.values() for t in (pair.down, pair.up))

    @property
    def rank(self) -> int:
        """The largest rank among its layers."""
        return max((int(pair.down.shape[0]) for pair in self.layers.values()), default=0)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Adapter:
        """The same adapter with its factors in another dtype or on another device; itself if nothing changes."""
        moved = {
            name: LowRank(pair.down.to(dtype=dtype, device=device), pair.up.to(dtype=dtype, device=device))
            for name, pair in self.layers.items()
        }
        if all(moved[name].down is pair.down and moved[name].up is pair.up for name, pair in self.layers.items()):
            return self
        return Adapter(moved, self.scale)


@dataclass(frozen=True, eq=False)
class Head:
    """A linear layer over final hidden states, in place of a verbalizer.

    Attributes:
        labels: in the order of the rows of ``weight``.
        weight: ``[labels, hidden]``.
        bias: ``[labels]``.
        per_token: a label for every word (token classification), not one for the whole text.
    """

    labels: tuple[str, ...]
    weight: torch.Tensor
    bias: torch.Tensor
    per_token: bool = False


def soft_id(index: int) -> int:
    """The token id that stands for soft token ``index``: ids below 0 name rows of `Front.inner`, -1 the first.

    A row of tokens with soft tokens inside is thereby still one list of numbers, which can be cut, compared and
    cached like any other; `Batch` turns them into embeddings.
    """
    return -1 - index


@dataclass(frozen=True, eq=False)
class Front:
    """What is learned, as one forward sees it: all that stands in front of the rows or goes with them.

    Attributes:
        prefix: keys and values in front of every row, or ``None``.
        soft: soft tokens ``[P, hidden]`` that run once as a row of the batch's own pass, or ``None``; they stand
            behind the prefix and in front of every row.
        inner: soft tokens ``[S, hidden]`` that stand inside rows, where their `soft_id` says; or ``None``.
        adapter: changes of the model's layers, for every row and for the soft tokens; or ``None``.
        bos: whether the request behind ``soft`` still brings the beginning-of-text token.
    """

    prefix: KVPrefix | None = None
    soft: torch.Tensor | None = None
    inner: torch.Tensor | None = None
    adapter: Adapter | None = None
    bos: Bos = "request"


@dataclass(frozen=True, eq=False)
class Batch:
    """A ragged batch: sequences of different lengths, laid end to end as ``[1, N]`` tokens, without padding.

    A sequence may continue another of the same batch (its *parent*): it sees all of the parent's tokens and of the
    parent's ancestors, and its positions go on where the parent's end. That one idea puts a soft prompt in front of
    every row while computing it once, and hangs the words of a verbalizer behind one question.

    Attributes:
        lengths: tokens of every sequence; ``N = sum(lengths)``.
        parents: index of the sequence that it continues (smaller than its own index), or ``None``.
        prefixes: stored prefix in front of it, or ``None``; a sequence with a parent inherits the parent's.
        token_ids: ``[N]``; positions filled from ``embeds`` hold any valid id.
        embeds: soft tokens as ``[K, hidden]``, or ``None``.
        embed_rows: ``[K]`` places in ``0..N-1`` where ``embeds`` replace the embedding of the token id.
        computed: how many tokens of every sequence an engine's cache holds already; they come before the ones here.
        adapters: changes of the model's layers for the tokens of every sequence; ``None`` if there are none at all.
    """

    lengths: tuple[int, ...]
    parents: tuple[int | None, ...]
    prefixes: tuple[KVPrefix | None, ...]
    token_ids: torch.Tensor
    embeds: torch.Tensor | None = None
    embed_rows: torch.Tensor | None = None
    computed: tuple[int, ...] | None = None
    adapters: tuple[Adapter | None, ...] | None = None

    @classmethod
    def behind(
        cls,
        front: Front,
        rows: Sequence[Sequence[int]],
        parents: Sequence[int | None] | None = None,
        device: torch.device | str | None = None,
    ) -> Batch:
        """Lay rows of token ids behind a front; they are the last ``len(rows)`` sequences of the batch.

        Args:
            front: shared by all rows; its soft tokens become a first sequence of their own.
            rows: token ids, none empty; ids below 0 name the front's inner soft tokens (`soft_id`).
            parents: index into ``rows`` that a row continues, or ``None`` for those right behind the front.
            device: where the tokens go.
        """
        import torch

        parents = parents if parents is not None else [None] * len(rows)
        prefix = front.prefix if front.prefix is not None and front.prefix.length else None
        lengths = tuple(len(row) for row in rows)
        ids = [token for row in rows for token in row]
        if front.soft is None:
            prefixes = tuple(prefix if parent is None else None for parent in parents)
            count = 0
        else:
            count = front.soft.shape[0]
            parents = (None, *(0 if parent is None else parent + 1 for parent in parents))
            lengths, prefixes = (count, *lengths), (prefix, *(None for _ in rows))
        embeds, embed_rows = embedded(front.soft, front.inner, ids)
        return cls(
            lengths=lengths,
            parents=tuple(parents),
            prefixes=prefixes,
            token_ids=torch.tensor([0] * count + [max(token, 0) for token in ids], device=device),
            embeds=embeds,
            embed_rows=torch.tensor(embed_rows, device=device) if embeds is not None else None,
            adapters=(front.adapter,) * len(lengths) if front.adapter is not None else None,
        )

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Place of every sequence's first token in ``0..N-1``, and ``N`` at the end."""
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        return tuple(starts)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Position of every sequence's first token: behind its parent, or behind its prefix and computed tokens."""
        offsets: list[int] = []
        computed = self.computed or (0,) * len(self.lengths)
        for parent, prefix, behind in zip(self.parents, self.prefixes, computed, strict=True):
            if parent is not None:
                offsets.append(offsets[parent] + self.lengths[parent])
            else:
                offsets.append((prefix.offset if prefix is not None else 0) + behind)
        return tuple(offsets)


def embedded(
    soft: torch.Tensor | None, inner: torch.Tensor | None, ids: Sequence[int]
) -> tuple[torch.Tensor | None, list[int]]:
    """Soft tokens of a batch and the places that they take: first those that lead it, then those inside its rows.

    Args:
        soft: ``[P, hidden]`` at places ``0..P-1``, or ``None``.
        inner: ``[S, hidden]``, named by ids below 0.
        ids: token ids of the rows, behind ``soft``.

    Raises:
        UsageError: an id names a soft token that there is not.
    """
    import torch

    first = soft.shape[0] if soft is not None else 0
    places = [first + place for place, token in enumerate(ids) if token < 0]
    named = [-1 - token for token in ids if token < 0]
    have = inner.shape[0] if inner is not None else 0
    if named and max(named) >= have:
        raise UsageError(f"the tokens name soft token {max(named)}, but there are {have}.")
    if inner is None or not named:
        return soft, list(range(first))
    chosen = inner.index_select(0, torch.tensor(named, device=inner.device))
    embeds = torch.cat([soft.to(chosen.dtype), chosen]) if soft is not None else chosen
    return embeds, [*range(first), *places]


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token, and when to stop.

    Attributes:
        max_tokens: tokens to generate at most.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: keep the smallest set of tokens with at least this probability mass, ``0 < top_p <= 1``.
        top_k: keep the ``k`` most probable tokens; 0 keeps all.
        seed: makes a sampled answer repeatable whatever else is in the batch; ``None`` draws one.
        stop: texts that end the answer; they are not part of it.
        stop_token_ids: token ids that end the answer, besides the model's own end-of-text tokens.
        ignore_eos: go on past the model's end-of-text tokens.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if not 0.0 <= self.temperature <= 100.0:
            raise UsageError(f"temperature must be between 0 and 100, got {self.temperature}.")
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.top_k < 0:
            raise UsageError(f"top_k must be 0 (off) or more, got {self.top_k}.")
        if any(not text for text in self.stop):
            raise UsageError("a stop text is empty; leave it out.")


@dataclass(frozen=True, eq=False)
class Task:
    """A name that is served: prefix, template, verbalizer and generation defaults.

    Attributes:
        name: ``[a-z0-9][a-z0-9._-]{0,63}``.
        method: how the prefix came to be, such as ``p-tuning-v2`` or ``static``.
        prefix: may have length 0 (a manual template, LoRA alone).
        kind: ``learned``, or for a static prefix ``system`` (a system turn) or ``prompt`` (raw text in front).
        text: the text of a static task.
        template: source of the template, if examples have fields.
        verbalizer: words of every label, in the order of the labels.
        generation: defaults for requests, named as in `SamplingParams`.
        provenance: where it came from: data digest, recipe, metrics, parents; JSON values only.
        soft: ``[S, hidden]`` learned soft tokens, the last of them those of the template's ``{soft:N}`` in order; or
            ``None``. The ones in front of the first field of a causal model are in the prefix too, and are kept for
            transfer; the others stay embeddings, which the engine feeds in place.
        adapter: low-rank changes of the model for this task's requests.
        head: labels a text or its words from hidden states, in place of a verbalizer.
        bias: log-probability of every label without any input, which scores are calibrated by.
        members: further prefixes with the same template; their answers are combined with the first one's.
        combine: how: mean probability, or a vote of the members.
        version: ``NNNN-digest12``, set by the bank.
    """

    name: str
    method: str
    prefix: KVPrefix
    kind: Kind = "learned"
    text: str | None = None
    template: str | None = None
    verbalizer: Mapping[str, tuple[str, ...]] | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    soft: torch.Tensor | None = None
    adapter: Adapter | None = None
    head: Head | None = None
    bias: Mapping[str, float] | None = None
    members: tuple[KVPrefix, ...] = ()
    combine: Combine = "mean"
    version: str = ""

    @property
    def ref(self) -> str:
        """``name@version``, or the name alone before it is published."""
        return f"{self.name}@{self.version}" if self.version else self.name

    @property
    def labels(self) -> tuple[str, ...]:
        """What it chooses from, in the order of its scores; empty for a task that generates."""
        return self.head.labels if self.head is not None else tuple(self.verbalizer or ())

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        tensors = [t for t in (self.soft, *((self.head.weight, self.head.bias) if self.head else ())) if t is not None]
        own = sum(t.numel() * t.element_size() for t in tensors)
        adapter = self.adapter.nbytes if self.adapter is not None else 0
        return own + adapter + sum(prefix.nbytes for prefix in (self.prefix, *self.members))
