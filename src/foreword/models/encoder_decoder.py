"""`EncoderDecoder`: a frozen T5, BART or the like, with prefixes in front of its encoder, decoder and cross-attention.

It takes the same ragged batches as other models, so losses, label scorers and evaluation work on it unchanged. Prefixes
lie in front as in prefix tuning (Li and Liang 2021, arXiv:2101.00190, on BART).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import MoEModelOutput

from foreword.attention import AttentionFn
from foreword.core import Adapter, Batch, KVPrefix, LayerShape
from foreword.core.identity import describe_layers
from foreword.errors import UnsupportedModel, UsageError
from foreword.models.decoder_inputs import DecoderInputs
from foreword.models.decoder_positions import positions_of_rows
from foreword.models.language_model import LanguageModel
from foreword.models.past import Past
from foreword.models.projections import KeysValuesAt, ProjectionHooks


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """Texts as a decoder attends to them.

    Attributes:
        states: ``[R, S, hidden]`` of the encoder, padded behind the texts.
        mask: ``[R, S]``, 0 at padding.
    """

    states: Tensor
    mask: Tensor

    @classmethod
    def forgotten(cls, mask: Tensor, like: Tensor) -> EncodedTexts:
        """Texts whose keys and values are in a cache: their states are never read again, and take no memory.

        Args:
            mask: ``[R, S]``.
            like: any states of the same encoder.
        """
        return cls(like.new_zeros(()).expand(*mask.shape, like.shape[-1]), mask)


@dataclass(frozen=True, eq=False)
class Begun:
    """Answers that were begun.

    Attributes:
        encoded: their texts.
        cache: what the decoder keeps of prefix and start token, and of the texts.
        logits: ``[R, vocab]`` of their first tokens.
    """

    encoded: EncodedTexts
    cache: EncoderDecoderCache
    logits: Tensor


@dataclass(eq=False, repr=False)
class EncoderDecoder(LanguageModel):
    """A frozen encoder-decoder model.

    In its batches a sequence without a parent is an encoder text, soft tokens inside; one with a parent holds decoder
    tokens behind the start token. The logits after a text are those of the answer's first token. It runs on padded rows
    with Transformers' own attention: soft tokens see the text, so rows cannot share them.

    A prefix's layers are, in this order, those of the decoder's self-attention, of the cross-attention, and of the
    encoder's self-attention. The first lie in the decoder's cache, in its own form; the others take the place of
    placeholder tokens in front of the text, as they leave the layers' projections. A prefix of the decoder alone
    (`ModelIdentity.decoder_only`) has no placeholders.

    Attributes:
        decoder_start_token_id: as in Transformers' configurations.
        forced_bos_token_id: as in Transformers' configurations: the first token of every answer of the model alone.
            What was learned in front of it has learned its first token too.
        embed_scale: what the encoder multiplies the embeddings of its tokens with (Marian, Pegasus); soft tokens are as
            they stand behind it.
        caches: whether its decoder goes on from a cache as from the tokens; where not, it does not generate.
        takes_prefixes: whether it gives the logits of the joined text behind a prefix.
        hooks: on the projections of its layers; ``None`` where only the decoder's self-attention carries a prefix.
        hooked: numbers of the hooks' layers in the order of `ModelIdentity.layers`, without the decoder's.
    """

    is_encoder_decoder: ClassVar[bool] = True
    carried: ClassVar[str] = "through placeholder tokens and Transformers' cache"
    decoder_start_token_id: int = 0
    forced_bos_token_id: int | None = None
    embed_scale: float = 1.0
    caches: bool = True
    takes_prefixes: bool = True
    hooks: ProjectionHooks | None = None
    hooked: tuple[int, ...] = ()

    @property
    def num_decoder_layers(self) -> int:
        """Layers of the decoder's self-attention, which come first in `ModelIdentity.layers`."""
        return len(self.identity.layers) - len(self.hooked)

    @property
    def carries(self) -> str:
        """How it carries prefixes, and in which places."""
        if not self.takes_prefixes:
            return "nowhere: soft tokens and adapters alone"
        parts = "encoder, decoder and cross-attention" if self.hooks is not None else "decoder alone"
        return f"{self.carried}: {describe_layers(self.identity.layers)}, in front of its {parts}"

    @property
    def limits(self) -> tuple[str, ...]:
        """What it cannot do."""
        return () if self.caches else ("it writes no answers: its decoder's cache gives other logits than its tokens",)

    def logits(
        self,
        batch: Batch,
        output_indices: Tensor,
        *,
        attend: AttentionFn | Past | None = None,
    ) -> Tensor:
        """Logits ``[K, vocab]`` after the last token of a text, or after tokens of the decoder.

        Args:
            batch: texts, and decoder tokens behind them.
            output_indices: ``[K]`` indices in ``0..N-1``.
            attend: refused; it is for engines of other models.

        Raises:
            UnsupportedModel: there is a prefix that the model does not carry.
            UsageError: soft tokens without a text, or an index inside a text.
        """
        if attend is not None:
            raise UnsupportedModel(f"{self.name} is an encoder-decoder, whose attention stays Transformers' own.")
        self._check(batch)
        inputs = DecoderInputs.from_batch(batch)
        chosen = [inputs.logits_index(index) for index in output_indices.tolist()]
        parts: dict[int, Tensor] = {}
        for rows in self._rows_by_prefix(batch, inputs):
            found = self._run(batch, inputs, rows)
            parts |= dict(zip(rows, found, strict=True))
        return torch.stack([parts[row][column] for row, column in chosen])

    def hidden_states(
        self,
        batch: Batch,
        output_indices: Tensor,
        *,
        attend: AttentionFn | Past | None = None,
    ) -> Tensor:
        """Raise UnsupportedModel: no head works on an encoder-decoder."""
        del batch, output_indices, attend
        raise UnsupportedModel(f"{self.name} is an encoder-decoder, whose hidden states no head is made of.")

    @torch.no_grad()
    def kept(self, batch: Batch, positions: int | None = None) -> KVPrefix:
        """What the layers keep of a text that both the encoder and the decoder read: an initial prefix."""
        if positions is not None or len(batch.lengths) > 1 or batch.prefixes[0] is not None or batch.embeds is not None:
            raise UnsupportedModel(f"{self.name} is an encoder-decoder, whose prefixes stand behind no other.")
        if not self.takes_prefixes:
            raise UnsupportedModel(f"{self.name} ({self.identity.architecture}) {NO_PREFIX}")
        ids = batch.token_ids[None]
        found: dict[int, tuple[Tensor, Tensor]] = {}

        def record(layer: int, key: Tensor, value: Tensor) -> None:
            # LED pads its encoder's rows to whole windows.
            found[layer] = (key[0, : ids.shape[1]], value[0, : ids.shape[1]])

        with self.hooks.replaced({}, record) if self.hooks is not None else nullcontext():
            states = self.model.get_encoder()(input_ids=ids).last_hidden_state
            cache = empty_cache()
            self.model(
                encoder_outputs=encoder_output(states), decoder_input_ids=ids, past_key_values=cache, use_cache=True
            )
        kept = [(layer.keys[0], layer.values[0]) for layer in decoder_layers(cache)]
        shapes = self.identity.layers[self.num_decoder_layers :]
        for number, shape in zip(self.hooked, shapes, strict=True):
            key, value = found[number]
            kept.append((split_heads(key, shape), split_heads(value, shape)))
        keys, values = zip(*kept, strict=True)
        return KVPrefix(self.identity, keys, values, offset=ids.shape[1])

    def begin(self, batch: Batch) -> Begun:
        """Encode all texts of a batch and run the decoder's start token behind them.

        Args:
            batch: texts alone, behind prefixes of one length.
        """
        self._check(batch)
        texts = range(len(batch.lengths))
        rows = _EncoderRows.of(batch, texts)
        cache = self._cache([batch.prefixes[text] for text in texts]) or empty_cache()
        start = torch.full((len(texts), 1), self.decoder_start_token_id, device=self.device)
        with self._fronts(batch, texts, texts):
            encoded = self._encode(batch, rows)
            logits = self._decode(start, encoded, cache)[:, -1]
        return Begun(encoded, cache, logits)

    def go_on(
        self,
        tokens: Tensor,
        encoded: EncodedTexts,
        cache: EncoderDecoderCache,
        cache_mask: Tensor | None = None,
        adapters: Sequence[Adapter | None] = (),
    ) -> Tensor:
        """Logits ``[R, vocab]`` after one more decoder token of every row; its keys and values go into the cache.

        Args:
            tokens: ``[R]`` token ids.
            encoded: the rows' texts; their states are not read again, see `EncodedTexts.forgotten`.
            cache: of the rows, as long in all of them.
            cache_mask: ``[R, T]``, 0 where a row's self-attention cache is padding; ``None`` if nothing is.
            adapters: of every row; none for no adapters at all.
        """
        # What of them changes the encoder or the keys of its states was applied at the beginning.
        self._adapters.activate_rows(adapters, self.device)
        rows = nullcontext()
        if cache_mask is not None:
            rows = positions_of_rows(self.model.get_decoder(), cache_mask.sum(1).tolist(), cache_mask.shape[1])
        try:
            with rows:
                return self._decode(tokens[:, None], encoded, cache, cache_mask)[:, -1]
        finally:
            self._adapters.clear()

    def _run(self, batch: Batch, inputs: DecoderInputs, rows: Sequence[int]) -> Tensor:
        """Logits ``[rows, tokens, vocab]`` of some decoder rows, behind prefixes of one length."""
        texts = [index for index, parent in enumerate(batch.parents) if parent is None]
        numbers = list(dict.fromkeys(inputs.text_indices[row] for row in rows))
        own, of_row = [texts[n] for n in numbers], [numbers.index(inputs.text_indices[row]) for row in rows]
        start = batch.token_ids.new_tensor([self.decoder_start_token_id])
        ids = [torch.cat([start, batch.token_ids[inputs.token_indices[row]]]) for row in rows]
        # Padding comes after a row's tokens, which never attend to it.
        padded = pad_sequence(ids, batch_first=True, padding_value=self.decoder_start_token_id)
        behind = [own[number] for number in of_row]
        with self._fronts(batch, own, behind):
            encoded = self._encode(batch, _EncoderRows.of(batch, own))
            chosen = torch.tensor(of_row, device=self.device)
            each = EncodedTexts(encoded.states[chosen], encoded.mask[chosen])
            if batch.adapters is not None and len(behind) != len(own):
                if torch.is_grad_enabled() and self.model.is_activation_checkpointing and len(set(batch.adapters)) > 1:
                    raise UsageError(f"{self.name} runs its rows again with other adapters; leave out --checkpointing.")
                self._adapters.go_on_rows([batch.adapters[text] for text in behind], self.device)
            return self._decode(padded, each, self._cache([batch.prefixes[text] for text in behind]))

    def _decode(
        self, ids: Tensor, encoded: EncodedTexts, cache: EncoderDecoderCache | None, cache_mask: Tensor | None = None
    ) -> Tensor:
        """Logits ``[R, T, vocab]`` of decoder tokens ``[R, T]``."""
        padding = {}
        if cache_mask is not None:
            padding["decoder_attention_mask"] = torch.cat([cache_mask, cache_mask.new_ones(ids.shape)], dim=1)
        # The ids of the texts are never read, but without a cache FSMT's decoder is causal only where there are some.
        given = {"input_ids": ids} if cache is None else {"past_key_values": cache}
        return self.model(
            encoder_outputs=encoder_output(encoded.states),
            attention_mask=encoded.mask,
            decoder_input_ids=ids,
            use_cache=cache is not None,
            **given,
            **padding,
        ).logits

    def _encode(self, batch: Batch, rows: _EncoderRows) -> EncodedTexts:
        """The encoder's states of some texts, behind the placeholders of their prefixes."""
        ids = torch.cat([batch.token_ids, batch.token_ids.new_zeros(1)])
        embedded = self.model.get_input_embeddings()(ids) * self.embed_scale
        if batch.embeds is not None and batch.embed_indices is not None:
            embedded = embedded.index_copy(0, batch.embed_indices, batch.embeds.to(embedded.dtype))
        mask = rows.mask.to(self.device)
        padded = embedded[rows.tokens.to(self.device)] * mask.to(embedded.dtype)[:, :, None]
        # Named by all: FSMT's encoder has no default for the ids.
        found = self.model.get_encoder()(input_ids=None, inputs_embeds=padded, attention_mask=mask)
        return EncodedTexts(found.last_hidden_state, mask)

    @contextmanager
    def _fronts(self, batch: Batch, texts: Sequence[int], behind: Sequence[int]) -> Iterator[None]:
        """Run the encoder over texts and the decoder behind them with their prefixes and adapters.

        Args:
            texts: sequences, one an encoder row.
            behind: of every decoder row, its text.
        """
        adapters = [batch.adapters[text] for text in texts] if batch.adapters is not None else []
        with self._adapted_rows(adapters), self._replaced(batch, texts, behind):
            yield

    @contextmanager
    def _replaced(self, batch: Batch, texts: Sequence[int], behind: Sequence[int]) -> Iterator[None]:
        """Put prefixes in the place of placeholders, in the encoder and in the cross-attention."""
        places: dict[int, KeysValuesAt] = {}
        first = self.num_decoder_layers
        for layer, number in enumerate(self.hooked, first):
            is_cross = self.identity.layers[layer].part == "cross-attention"
            place = _place([batch.prefixes[text] for text in (behind if is_cross else texts)], layer, self.device)
            if place is not None:
                places[number] = place
        if not places or self.hooks is None:
            yield
            return
        with self.hooks.replaced(places):
            yield

    def _cache(self, prefixes: Sequence[KVPrefix | None]) -> EncoderDecoderCache | None:
        """The decoder's cache behind prefixes of one length; ``None`` behind none."""
        present = [prefix for prefix in prefixes if prefix is not None and prefix.length]
        if not present:
            return None
        found: list[tuple[Tensor, Tensor]] = []
        for layer in range(self.num_decoder_layers):
            key = torch.stack([prefix.keys[layer] for prefix in present])
            value = torch.stack([prefix.values[layer] for prefix in present])
            found.append((key.to(self.device), value.to(self.device)))
        return EncoderDecoderCache(filled_cache(found), DynamicCache())

    def _rows_by_prefix(self, batch: Batch, inputs: DecoderInputs) -> list[list[int]]:
        """Decoder rows behind prefixes of one length, since the positions of their tokens begin behind it."""
        texts = [index for index, parent in enumerate(batch.parents) if parent is None]
        groups: dict[int, list[int]] = {}
        for row, text in enumerate(inputs.text_indices):
            groups.setdefault(prefix_length(batch.prefixes[texts[text]]), []).append(row)
        return list(groups.values())

    def _check(self, batch: Batch) -> None:
        for prefix in batch.prefixes:
            if prefix is None or not prefix.length:
                continue
            if not self.takes_prefixes:
                raise UnsupportedModel(f"{self.name} ({self.identity.architecture}) {NO_PREFIX}")
            if torch.is_grad_enabled() and self.model.is_activation_checkpointing:
                raise UsageError(f"gradient checkpointing forgets prefixes of {self.name}; leave out --checkpointing.")
            if prefix.model.layers not in (self.identity.layers, self.identity.decoder_only.layers):
                ours, theirs = map(describe_layers, (self.identity.layers, prefix.model.layers))
                raise UnsupportedModel(
                    f"{self.name} has {ours}, a prefix {theirs}; load the model that it was made for."
                )
            if prefix.offset != prefix.length:
                raise UsageError(
                    f"a prefix of {prefix.length} positions starts its requests at position {prefix.offset}, which "
                    f"{self.name} cannot do; learn it again on this model."
                )
        indices = batch.embed_indices.tolist() if batch.embed_indices is not None else []
        soft = [bisect_right(batch.starts, index) - 1 for index in indices]
        alone = {i for i in set(soft) if soft.count(i) == batch.lengths[i]}
        if alone or any(batch.parents[i] is not None for i in soft):
            raise UsageError("soft tokens of an encoder-decoder stand in the rows of its texts, with the text.")


NO_CACHE = (
    "gives other logits from its decoder's cache than from the tokens, so it writes no answers; have it label "
    "(/v1/classify), or use another model."
)
NO_PREFIX = (
    "does not give the logits of the joined text behind a prefix; learn soft tokens (prompt-tuning or p-tuning) or an "
    "adapter (lora)."
)


@dataclass(frozen=True, eq=False)
class _EncoderRows:
    """Texts as rows ``[R, S]``: placeholders, tokens, padding.

    Attributes:
        tokens: indices in the batch; the index behind its last for placeholders and padding.
        mask: 0 at padding.
    """

    tokens: Tensor
    mask: Tensor

    @classmethod
    def of(cls, batch: Batch, texts: Sequence[int]) -> _EncoderRows:
        fronts = [num_placeholders(batch.prefixes[text]) for text in texts]
        lengths = [front + batch.lengths[text] for front, text in zip(fronts, texts, strict=True)]
        tokens = torch.full((len(texts), max(lengths)), batch.starts[-1])
        for row, (front, text) in enumerate(zip(fronts, texts, strict=True)):
            tokens[row, front : lengths[row]] = torch.arange(batch.starts[text], batch.starts[text + 1])
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        return cls(tokens, mask.long())


def prefix_length(prefix: KVPrefix | None) -> int:
    """Positions of a prefix; 0 for none."""
    return prefix.length if prefix is not None else 0


def num_placeholders(prefix: KVPrefix | None) -> int:
    """Placeholder tokens in front of a text: one a position, none for a prefix of the decoder alone."""
    return prefix_length(prefix) if prefix is not None and any(shape.part for shape in prefix.model.layers) else 0


def empty_cache() -> EncoderDecoderCache:
    """A cache of nothing, in which every layer will keep all positions."""
    return EncoderDecoderCache(filled_cache(()), filled_cache(()))


def filled_cache(pairs: Sequence[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A cache with the keys and values ``[R, kv_heads, T, dim]`` of every layer."""
    # Without a model's configuration every layer keeps all positions, those outside a sliding window too.
    cache = DynamicCache()
    for key, value in pairs:
        layer = DynamicLayer()
        layer.lazy_initialization(key, value)
        layer.keys, layer.values = key, value
        cache.layers.append(layer)
    return cache


def _place(prefixes: Sequence[KVPrefix | None], layer: int, device: torch.device) -> KeysValuesAt | None:
    """A layer's keys and values at the placeholders of rows; ``None`` if there are none."""
    present = [(row, prefix) for row, prefix in enumerate(prefixes) if prefix is not None and num_placeholders(prefix)]
    if not present:
        return None
    rows = torch.tensor([row for row, prefix in present for _ in range(prefix.length)], device=device)
    columns = torch.cat([torch.arange(prefix.length) for _, prefix in present]).to(device)
    keys = torch.cat([prefix.keys[layer].transpose(0, 1).flatten(1) for _, prefix in present])
    values = torch.cat([prefix.values[layer].transpose(0, 1).flatten(1) for _, prefix in present])
    return KeysValuesAt(rows, columns, keys.to(device), values.to(device))


def split_heads(rows: Tensor, shape: LayerShape) -> Tensor:
    """``[kv_heads, T, dim]`` of a projection's output ``[T, kv_heads * dim]``."""
    return rows.unflatten(1, (shape.kv_heads, -1)).transpose(0, 1).contiguous()


def decoder_layers(cache: Any) -> list[Any]:
    """Layers of the decoder's self-attention in a cache, with ``keys`` and ``values``."""
    layers = cache.self_attention_cache.layers
    # Transformers lays out as many as a configuration names: for T5 those of the encoder, which may be more.
    return [layer for layer in layers if layer.is_initialized]


def encoder_output(states: Tensor) -> Any:
    """States of an encoder as the models' forwards take them: mixtures of experts read more of it than the states."""
    return MoEModelOutput(last_hidden_state=states)  # pyright: ignore[reportArgumentType]
