"""`EncoderDecoder`: a frozen T5, BART or the like, with soft tokens in front of its encoder.

It takes the same ragged batches as other models, so losses, label scorers and evaluation work on it unchanged.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import MoEModelOutput

from foreword.attention import AttentionFn
from foreword.core import Batch
from foreword.errors import UnsupportedModel, UsageError
from foreword.models.decoder_inputs import DecoderInputs
from foreword.models.language_model import LanguageModel
from foreword.models.past import Past


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


@dataclass(eq=False, repr=False)
class EncoderDecoder(LanguageModel):
    """A frozen encoder-decoder model.

    In its batches a sequence without a parent is an encoder text, soft tokens inside; one with a parent holds decoder
    tokens behind the start token. The logits after a text are those of the answer's first token. It runs on padded rows
    with Transformers' own attention: soft tokens see the text, so rows cannot share them.

    Attributes:
        decoder_start_token_id: as in Transformers' configurations.
        embed_scale: what the encoder multiplies the embeddings of its tokens with (Marian, Pegasus); soft tokens are as
            they stand behind it.
    """

    is_encoder_decoder: ClassVar[bool] = True
    carried: ClassVar[str] = "in front of its encoder"
    decoder_start_token_id: int = 0
    embed_scale: float = 1.0

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
            attend: refused; it is for engines.

        Raises:
            UnsupportedModel: there are prefixes or adapters.
            UsageError: soft tokens without a text, or an index inside a text.
        """
        if attend is not None:
            raise UnsupportedModel(f"{self.name} is an encoder-decoder, whose keys and values are not kept.")
        encoded = self.encode(batch)
        inputs = DecoderInputs.from_batch(batch)
        texts = torch.tensor(inputs.text_indices, device=self.device)
        start = texts.new_tensor([self.decoder_start_token_id])
        ids = [torch.cat([start, batch.token_ids[indices]]) for indices in inputs.token_indices]
        output = self.model(
            encoder_outputs=encoder_output(encoded.states[texts]),
            attention_mask=encoded.mask[texts],
            input_ids=texts[:, None],  # never read, but FSMT's decoder is causal only where there are ids
            # Padding comes after a row's tokens, which never attend to it.
            decoder_input_ids=pad_sequence(ids, batch_first=True, padding_value=self.decoder_start_token_id),
            use_cache=False,
        )
        chosen = torch.tensor([inputs.logits_index(index) for index in output_indices.tolist()], device=self.device)
        return output.logits[chosen[:, 0], chosen[:, 1]]

    def hidden_states(
        self,
        batch: Batch,
        output_indices: Tensor,
        *,
        attend: AttentionFn | Past | None = None,
    ) -> Tensor:
        """Raise UnsupportedModel: neither heads nor lowering work on an encoder-decoder."""
        del batch, output_indices, attend
        raise UnsupportedModel(f"{self.name} is an encoder-decoder, whose hidden states no head or prefix is made of.")

    def encode(self, batch: Batch) -> EncodedTexts:
        """The encoder's hidden states of all texts of a batch.

        Raises as `logits` does.
        """
        self._check(batch)
        embedded = self.model.get_input_embeddings()(batch.token_ids) * self.embed_scale
        if batch.embeds is not None and batch.embed_indices is not None:
            embedded = embedded.index_copy(0, batch.embed_indices, batch.embeds.to(embedded.dtype))
        texts = [i for i, parent in enumerate(batch.parents) if parent is None]
        rows = [embedded[batch.starts[i] : batch.starts[i + 1]] for i in texts]
        mask = pad_sequence([row.new_ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        padded = pad_sequence(rows, batch_first=True)
        # Named by all: FSMT's encoder has no default for the ids.
        found = self.model.get_encoder()(input_ids=None, inputs_embeds=padded, attention_mask=mask)
        return EncodedTexts(found.last_hidden_state, mask)

    def decode(
        self,
        tokens: Tensor,
        encoded: EncodedTexts,
        cache: EncoderDecoderCache,
        cache_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits ``[R, vocab]`` after one more decoder token of every row; its keys and values go into the cache.

        Args:
            tokens: ``[R]`` token ids.
            encoded: the rows' texts. Their states are read where the cache holds nothing of them yet, see
                `EncodedTexts.forgotten`.
            cache: of the rows, as long in all of them.
            cache_mask: ``[R, T]``, 0 where a row's self-attention cache is padding; ``None`` if nothing is.
        """
        padding = {}
        if cache_mask is not None:
            padding["decoder_attention_mask"] = torch.cat([cache_mask, cache_mask.new_ones(len(tokens), 1)], dim=1)
        output = self.model(
            encoder_outputs=encoder_output(encoded.states),
            attention_mask=encoded.mask,
            decoder_input_ids=tokens[:, None],
            past_key_values=cache,
            use_cache=True,
            **padding,
        )
        return output.logits[:, -1]

    def _check(self, batch: Batch) -> None:
        if any(prefix is not None and prefix.length for prefix in batch.prefixes) or batch.adapters is not None:
            raise UnsupportedModel(
                f"{self.name} is an encoder-decoder, which takes soft tokens in front of its text and neither prefixes "
                "nor adapters; learn with prompt-tuning or p-tuning."
            )
        indices = batch.embed_indices.tolist() if batch.embed_indices is not None else []
        soft = [bisect_right(batch.starts, index) - 1 for index in indices]
        alone = {i for i in set(soft) if soft.count(i) == batch.lengths[i]}
        if alone or any(batch.parents[i] is not None for i in soft):
            raise UsageError("soft tokens of an encoder-decoder stand in the rows of its texts, with the text.")


def encoder_output(states: Tensor) -> Any:
    """States of an encoder as the models' forwards take them: mixtures of experts read more of it than the states."""
    return MoEModelOutput(last_hidden_state=states)  # pyright: ignore[reportArgumentType]
