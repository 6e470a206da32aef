"""`Batch`: sequences of different lengths as one ragged forward, behind a `Front`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from foreword.core.adapter import Adapter
from foreword.core.prefix import Bos, KVPrefix
from foreword.errors import UsageError

if TYPE_CHECKING:
    import torch


def soft_id(index: int) -> int:
    """The token id that stands for soft token ``index``: ids below 0 name rows of `Front.inner_soft`, -1 the first.

    A row of tokens with soft tokens inside is thereby still one list of numbers, which can be cut, compared and
    cached like any other; `Batch` turns them into embeddings.
    """
    return -1 - index


@dataclass(frozen=True, eq=False)
class Front:
    """The learned parts of one forward: prefix or soft tokens in front of all rows, soft tokens in them, an adapter.

    Attributes:
        prefix: keys and values in front of every row, or ``None``.
        soft: soft tokens ``[P, hidden]`` behind the prefix and in front of every row, or ``None``; they run once, as
            a sequence of their own.
        inner_soft: soft tokens ``[S, hidden]`` inside rows, where their `soft_id` stands; or ``None``.
        adapter: changes of the model's layers, for every row and for the soft tokens; or ``None``.
        bos: where the beginning-of-text token is, see `KVPrefix`.
    """

    prefix: KVPrefix | None = None
    soft: torch.Tensor | None = None
    inner_soft: torch.Tensor | None = None
    adapter: Adapter | None = None
    bos: Bos = "request"


@dataclass(frozen=True, eq=False)
class Batch:
    """A ragged batch: sequences of different lengths, laid end to end as ``[1, N]`` tokens, without padding.

    A sequence may continue another of the same batch (its *parent*): it attends to all tokens of the parent and of the
    parent's ancestors, and its positions go on where the parent's end. So a soft prompt in front of every row is
    computed once, and the words of a verbalizer share one example (tree attention).

    Attributes:
        lengths: tokens of every sequence; ``N = sum(lengths)``.
        parents: index of the sequence that it continues (smaller than its own index), or ``None``.
        prefixes: of every sequence, the prefix in front of it, or ``None``; a child inherits its parent's.
        token_ids: ``[N]``; positions filled from ``embeds`` hold any valid id.
        embeds: soft tokens as ``[K, hidden]``, or ``None``.
        embed_indices: ``[K]`` indices in ``0..N-1`` where ``embeds`` replace the embedding of the token id.
        num_computed_tokens: how many tokens of every sequence an engine's cache holds; they come before the ones here.
        adapters: changes of the model's layers for the tokens of every sequence; ``None`` if there are none at all.
    """

    lengths: tuple[int, ...]
    parents: tuple[int | None, ...]
    prefixes: tuple[KVPrefix | None, ...]
    token_ids: torch.Tensor
    embeds: torch.Tensor | None = None
    embed_indices: torch.Tensor | None = None
    num_computed_tokens: tuple[int, ...] | None = None
    adapters: tuple[Adapter | None, ...] | None = None

    @classmethod
    def from_rows(
        cls,
        front: Front,
        rows: Sequence[Sequence[int]],
        parents: Sequence[int | None] | None = None,
        device: torch.device | str | None = None,
    ) -> Batch:
        """A batch of rows of token ids behind a front; the rows are its last ``len(rows)`` sequences.

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
        embeds, embed_indices = gather_embeds(front.soft, front.inner_soft, ids)
        return cls(
            lengths=lengths,
            parents=tuple(parents),
            prefixes=prefixes,
            token_ids=torch.tensor([0] * count + [max(token, 0) for token in ids], device=device),
            embeds=embeds,
            embed_indices=torch.tensor(embed_indices, device=device) if embeds is not None else None,
            adapters=(front.adapter,) * len(lengths) if front.adapter is not None else None,
        )

    @classmethod
    def concat(cls, batches: Sequence[Batch]) -> Batch:
        """One batch of the sequences of several, in their order, as for rows behind different fronts.

        No token attends to one of another batch. Raises UsageError for tokens in an engine's cache.
        """
        import torch

        if len(batches) == 1:
            return batches[0]
        if any(batch.num_computed_tokens is not None for batch in batches):
            raise UsageError("batches with computed tokens belong to their engine; lay them out as one there.")
        parents: list[int | None] = []
        rows, first = [], 0
        for batch in batches:
            above = len(parents)
            parents += [parent if parent is None else parent + above for parent in batch.parents]
            if batch.embed_indices is not None:
                rows.append(batch.embed_indices + first)
            first += batch.starts[-1]
        embeds = [batch.embeds for batch in batches if batch.embeds is not None]
        adapters = [each for batch in batches for each in batch.adapters or (None,) * len(batch.lengths)]
        return cls(
            lengths=tuple(length for batch in batches for length in batch.lengths),
            parents=tuple(parents),
            prefixes=tuple(prefix for batch in batches for prefix in batch.prefixes),
            token_ids=torch.cat([batch.token_ids for batch in batches]),
            embeds=torch.cat(embeds) if embeds else None,
            embed_indices=torch.cat(rows) if rows else None,
            adapters=tuple(adapters) if any(each is not None for each in adapters) else None,
        )

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Index of every sequence's first token in ``0..N-1``, and ``N`` at the end (``cu_seqlens``)."""
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        return tuple(starts)

    @cached_property
    def position_offsets(self) -> tuple[int, ...]:
        """Position id of every sequence's first token: behind its parent, or behind its prefix and computed tokens."""
        offsets: list[int] = []
        computed = self.num_computed_tokens or (0,) * len(self.lengths)
        for parent, prefix, count in zip(self.parents, self.prefixes, computed, strict=True):
            if parent is not None:
                offsets.append(offsets[parent] + self.lengths[parent])
            else:
                offsets.append((prefix.offset if prefix is not None else 0) + count)
        return tuple(offsets)


def gather_embeds(
    soft: torch.Tensor | None, inner: torch.Tensor | None, ids: Sequence[int]
) -> tuple[torch.Tensor | None, list[int]]:
    """``embeds [K, hidden]`` and ``embed_indices`` of a `Batch`: soft tokens in front, then those inside its rows.

    Args:
        soft: ``[P, hidden]`` at indices ``0..P-1``, or ``None``.
        inner: ``[S, hidden]``, named by ids below 0 (`soft_id`).
        ids: token ids of the rows, behind ``soft``.

    Raises:
        UsageError: an id names a soft token that there is not.
    """
    import torch

    first = soft.shape[0] if soft is not None else 0
    indices = [first + index for index, token in enumerate(ids) if token < 0]
    named = [-1 - token for token in ids if token < 0]
    have = inner.shape[0] if inner is not None else 0
    if named and max(named) >= have:
        raise UsageError(f"the tokens name soft token {max(named)}, but there are {have}.")
    if inner is None or not named:
        return soft, list(range(first))
    chosen = inner.index_select(0, torch.tensor(named, device=inner.device))
    embeds = torch.cat([soft.to(chosen.dtype), chosen]) if soft is not None else chosen
    return embeds, [*range(first), *indices]
