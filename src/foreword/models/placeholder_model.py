"""`PlaceholderModel`: an encoder whose rows run with placeholder tokens in front, where a prefix is put in every layer.

For models that read in both directions and that the registered attention function does not reach (MPNet, DeBERTa,
RoFormer). It takes the same ragged batches as other models; see `foreword.models.projections` for how a layer gets the
prefix. A request's rows then see the keys and values in front, and whatever the model does with them stays its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from foreword.attention import AttentionFn
from foreword.core import Batch, KVPrefix, LayerShape
from foreword.errors import UnsupportedModel, UsageError
from foreword.models.chosen_rows import logits_at
from foreword.models.language_model import LanguageModel, embed_tokens, model_body, token_embeddings
from foreword.models.neighbour_rows import EMBEDDINGS, INPUTS, NeighbourRows, RowsAt
from foreword.models.past import Past, append_keys_values
from foreword.models.projections import KeysValuesAt, ProjectionHooks

MAX_PADDING = 2
"""Rows of one forward are at most so many times as long as its shortest."""


@dataclass(eq=False, repr=False)
class PlaceholderModel(LanguageModel):
    """An encoder behind whose placeholder tokens every request is run; it scores, embeds and trains.

    A row is as many placeholders as its prefix has positions, its tokens, and padding behind them, so that its tokens
    have the positions of the joined text. Prefixes hold keys and values as they leave the layers' projections.

    Attributes:
        hooks: on the projections of all layers.
        neighbours: what layers read of the rows in front beside keys and values.
        pads: whether rows of different lengths can share a forward; else they are grouped by length.
        pads_itself: whether the model pads rows to whole windows by itself (Longformer).
        placeholder: token id of placeholders and of padding, none that the model takes for padding by itself; no other
            row sees what it is.
    """

    carried: ClassVar[str] = "through placeholder tokens"
    checkpoints: ClassVar[bool] = False
    hooks: ProjectionHooks | None = None
    neighbours: NeighbourRows | None = None
    pads: bool = True
    pads_itself: bool = False
    placeholder: int = 0

    @property
    def limits(self) -> tuple[str, ...]:
        grouped = ("rows of different lengths do not share a forward",) * (not self.pads)
        return (*super().limits, "every row runs as many tokens more as its prefix has positions", *grouped)

    def _outputs(
        self, batch: Batch, output_indices: Tensor, attend: AttentionFn | Past | None, *, hidden: bool
    ) -> Tensor:
        """See `LanguageModel.logits`.

        Raises:
            UnsupportedModel: there is an engine's cache, or a sequence that continues another.
            UsageError: a prefix with requests elsewhere than right behind it.
        """
        self._check(batch, attend)
        return self._run(batch, output_indices, self._hidden_at if hidden else self._logits_at)

    @torch.no_grad()
    def kept(self, batch: Batch, positions: int | None = None) -> KVPrefix:
        self._check(batch, None)
        past, kept = batch.prefixes[0], _Kept()
        front, positions = _prefix_length(past), batch.lengths[0] if positions is None else positions
        self._run(batch, torch.zeros(1, dtype=torch.long, device=self.device), self._hidden_at, kept)
        keys, values, states = [], [], []
        for index, layer in enumerate(self.identity.layers):
            own = (side[0, front : front + positions].unflatten(1, (layer.kv_heads, -1)) for side in kept.pairs[index])
            for side, found in zip((keys, values), own, strict=True):
                side.append(found.transpose(0, 1).contiguous())
            sources = {EMBEDDINGS: kept.embeddings, INPUTS: kept.inputs.get(index)}
            states.append(
                {each.name: _last(sources[each.name], front + positions, each.shape) for each in layer.states}
            )
        return append_keys_values(self.identity, past, keys, values, states)

    def _run(
        self,
        batch: Batch,
        output_indices: Tensor,
        outputs_at: Callable[[dict[str, Tensor], Tensor, Tensor], Tensor],
        kept: _Kept | None = None,
    ) -> Tensor:
        assert self.hooks is not None
        assert self.neighbours is not None
        outputs, indices = [], []
        for group in self._groups(batch):
            rows = _PaddedRows(batch, group, self.device)
            chosen = torch.isin(rows.indices, output_indices)
            if not chosen.any() and kept is None:
                continue
            adapters = [batch.adapters[index] if batch.adapters is not None else None for index in group]
            inputs = self._inputs(batch, rows)
            states = rows.states(self.identity.layers, INPUTS)
            if kept is not None:
                kept.embeddings = (
                    inputs["inputs_embeds"] if "inputs_embeds" in inputs else self._embed(inputs["input_ids"])
                )
            replaced = self.hooks.replaced(rows.prefixes(len(self.hooks.layers)), kept.record if kept else None)
            neighbours = self.neighbours.replaced(states, kept.record_inputs if kept else None)
            with self._adapted_rows(adapters), replaced, neighbours:
                outputs.append(outputs_at(inputs, rows.rows[chosen], rows.columns[chosen]))
            indices.append(rows.indices[chosen])
        found = torch.cat(indices)
        numbers = output_indices.new_zeros(batch.starts[-1]).index_copy(0, found, torch.arange(len(found)).to(found))
        return torch.cat(outputs)[numbers[output_indices]]

    def _check(self, batch: Batch, attend: AttentionFn | Past | None) -> None:
        if attend is not None or batch.num_computed_tokens is not None:
            raise UnsupportedModel(f"{self.name} reads in both directions, so no cache of an engine can hold its text.")
        if any(parent is not None for parent in batch.parents):
            raise UnsupportedModel(
                f"{self.name} reads in both directions, so no sequence can continue another; put soft tokens and words "
                "inside the rows."
            )
        for prefix in batch.prefixes:
            if prefix is not None and prefix.length and prefix.offset != prefix.length:
                raise UsageError(
                    f"a prefix of {prefix.length} positions starts its requests at position {prefix.offset}, which "
                    f"{self.name} cannot do: its prefixes stand on tokens; learn it again on this model."
                )

    def _groups(self, batch: Batch) -> Iterator[list[int]]:
        """Sequences that share a forward."""
        lengths = [_prefix_length(prefix) + n for prefix, n in zip(batch.prefixes, batch.lengths, strict=True)]
        group: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
            shortest = lengths[group[0]] if group else 0
            if group and lengths[index] > (MAX_PADDING * shortest if self.pads else shortest):
                yield group
                group = []
            group.append(index)
        yield group

    def _inputs(self, batch: Batch, rows: _PaddedRows) -> dict[str, Tensor]:
        """Arguments of the model for padded rows."""
        # The last of these ids is that of placeholders and of padding.
        ids = torch.cat([batch.token_ids, batch.token_ids.new_tensor([self.placeholder])])
        inputs = {"input_ids": ids[rows.tokens]}
        if batch.embeds is not None and batch.embed_indices is not None:
            embedded = torch.cat([embed_tokens(self.model, batch), self._embed(ids[-1:])])
            inputs = {"inputs_embeds": embedded[rows.tokens]}
        for place in rows.states(self.identity.layers, EMBEDDINGS).values():
            embedded = inputs["inputs_embeds"] if "inputs_embeds" in inputs else self._embed(inputs["input_ids"])
            inputs = {"inputs_embeds": place.put(embedded)}
        # Positions are the model's own, from its first on: those of the joined text. Behind embeddings, the padding
        # that a model adds by itself would have positions, too, which there need not be.
        if self.pads_itself and "inputs_embeds" in inputs:
            positions = torch.arange(self.first_position, self.first_position + rows.tokens.shape[1])
            inputs["position_ids"] = positions.to(self.device).expand(rows.tokens.shape)
        if len(set(rows.lengths)) > 1:
            columns = torch.arange(rows.tokens.shape[1], device=self.device)
            inputs["attention_mask"] = (columns < torch.tensor(rows.lengths, device=self.device)[:, None]).long()
        return inputs

    def _embed(self, ids: Tensor) -> Tensor:
        return token_embeddings(self.model, ids)

    def _logits_at(self, inputs: dict[str, Tensor], rows: Tensor, columns: Tensor) -> Tensor:
        return logits_at(self.model, inputs, rows, columns)

    def _hidden_at(self, inputs: dict[str, Tensor], rows: Tensor, columns: Tensor) -> Tensor:
        return model_body(self.model)(**inputs).last_hidden_state[rows, columns]


class _PaddedRows:
    """Some sequences of a batch as rows ``[R, T]``: placeholders, tokens, padding.

    Attributes:
        lengths: columns of every row that are not padding.
        tokens: ``[R, T]`` indices in the batch; the index behind its last for placeholders and padding.
        indices, rows, columns: ``[K]`` index in the batch, row and column of every token.
    """

    def __init__(self, batch: Batch, group: Sequence[int], device: torch.device) -> None:
        self._prefixes = [batch.prefixes[index] for index in group]
        fronts = [_prefix_length(prefix) for prefix in self._prefixes]
        self.lengths = [front + batch.lengths[index] for front, index in zip(fronts, group, strict=True)]
        tokens = torch.full((len(group), max(self.lengths)), batch.starts[-1])
        for row, (front, index) in enumerate(zip(fronts, group, strict=True)):
            tokens[row, front : self.lengths[row]] = torch.arange(batch.starts[index], batch.starts[index + 1])
        self.tokens = tokens.to(device)
        self.rows, self.columns = (self.tokens < batch.starts[-1]).nonzero(as_tuple=True)
        self.indices = self.tokens[self.rows, self.columns]

    def prefixes(self, layers: int) -> dict[int, KeysValuesAt]:
        """What every layer gets at the placeholders; nothing if there are none."""
        present = [(row, prefix) for row, prefix in enumerate(self._prefixes) if prefix is not None and prefix.length]
        if not present:
            return {}
        device = present[0][1].keys[0].device
        rows = torch.tensor([row for row, prefix in present for _ in range(prefix.length)], device=device)
        columns = torch.cat([torch.arange(prefix.length) for _, prefix in present]).to(device)
        return {
            layer: KeysValuesAt(
                rows,
                columns,
                torch.cat([prefix.keys[layer].transpose(0, 1).flatten(1) for _, prefix in present]),
                torch.cat([prefix.values[layer].transpose(0, 1).flatten(1) for _, prefix in present]),
            )
            for layer in range(layers)
        }

    def states(self, layers: Sequence[LayerShape], name: str) -> dict[int, RowsAt]:
        """What every layer that keeps a state of this name gets at the last placeholders."""
        places: dict[int, RowsAt] = {}
        present = [(row, prefix) for row, prefix in enumerate(self._prefixes) if prefix is not None and prefix.length]
        for index, layer in enumerate(layers):
            reach = next((state.shape[0] for state in layer.states if state.name == name), 0)
            if not reach or not present:
                continue
            used = [(row, prefix, min(reach, prefix.length)) for row, prefix in present]
            rows = [row for row, _, count in used for _ in range(count)]
            columns = [column for _, prefix, n in used for column in range(prefix.length - n, prefix.length)]
            states = torch.cat([prefix.states[index][name][-count:] for _, prefix, count in used])
            places[index] = RowsAt(
                torch.tensor(rows, device=states.device), torch.tensor(columns, device=states.device), states
            )
        return places


class _Kept:
    """What the layers of one sequence keep in its forward.

    Attributes:
        pairs: by layer, keys and values ``[1, S, width]``.
        inputs: by layer, the inputs ``[1, S, width]`` of those that read beside their attention.
        embeddings: ``[1, S, hidden]``.
    """

    def __init__(self) -> None:
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self.inputs: dict[int, Tensor] = {}
        self.embeddings: Tensor | None = None

    def record(self, layer: int, key: Tensor, value: Tensor) -> None:
        self.pairs[layer] = key, value

    def record_inputs(self, layer: int, inputs: Tensor) -> None:
        self.inputs[layer] = inputs


def _last(inputs: Tensor | None, end: int, shape: tuple[int, ...]) -> Tensor:
    """The inputs ``[reach, width]`` before column ``end`` of the only row ``[1, S, width]``; zeros before its start."""
    assert inputs is not None
    found = inputs[0, max(end - shape[0], 0) : end]
    return F.pad(found, (0, 0, shape[0] - len(found), 0)).contiguous()


def _prefix_length(prefix: KVPrefix | None) -> int:
    return prefix.length if prefix is not None else 0
