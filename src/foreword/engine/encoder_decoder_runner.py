"""`EncoderDecoderRunner`: runs the scheduled tokens of one step through an encoder-decoder."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from foreword.engine.decoder_cache import DecoderCache
from foreword.engine.decoder_rows import DecoderRows
from foreword.engine.model_runner import make_batch
from foreword.engine.scheduler import ScheduledTokens
from foreword.engine.sequence import Sequence
from foreword.models.encoder_decoder import EncodedTexts, EncoderDecoder, prefix_length
from foreword.models.encoder_decoder_padding import pads_in_front
from foreword.text.ragged import batch_by_tokens

ENCODER_TOKENS = 4096
"""Tokens of the texts that are encoded in one forward; a longer one has a forward of its own."""

PADDED = 256
"""Rows up to this length share a batch with any other; longer ones with those of at most twice their length."""


class EncoderDecoderRunner:
    """The model and its cache, without any queue.

    Texts are encoded once, in padded batches. All answers go on by one token in one padded batch, joining and leaving
    it between steps; where the model takes no padding in front of a decoder's tokens (learned positions are counted
    from the beginning of the cache), those as long as one another.

    Args:
        apart: run every sequence in forwards of its own, since kernels round otherwise in other shapes.
    """

    def __init__(self, lm: EncoderDecoder, cache: DecoderCache, *, apart: bool = False) -> None:
        self._lm, self._cache, self._apart = lm, cache, apart
        self._pads = not apart and pads_in_front(lm)

    @torch.inference_mode()
    def run(self, scheduled: Items[ScheduledTokens]) -> Tensor:
        """Logits ``[K, vocab]``, in the model's dtype, after each entry that needs them, in their order."""
        going = {each.sequence: each for each in scheduled if each.start}
        self._cache.regroup(lambda sequence, length, text: self._key(sequence, length, text, sequence in going))
        logits: dict[Sequence, Tensor] = {}
        for rows in self._cache.batches:
            if rows.sequences[0] in going:
                tokens = [going[sequence] for sequence in rows.sequences]
                self._step(rows, [each.sequence.token_ids(each.start, each.end)[0] for each in tokens], logits)
        for texts in self._texts([each for each in scheduled if not each.start]):
            self._cache.batches.append(self._begin(texts, logits))
        needed = [logits[each.sequence] for each in scheduled if each.needs_logits]
        return torch.stack(needed) if needed else torch.empty(0, self._lm.vocab_size, device=self._lm.device)

    def _key(self, sequence: Sequence, length: int, text: int, runs: bool) -> Hashable:
        """Equal for sequences that share a batch: they are about as long, in it no key is padding for nothing."""
        if self._apart:
            return sequence
        return runs, _size(length) if self._pads else length, _size(text)

    def _texts(self, scheduled: Items[ScheduledTokens]) -> Iterator[list[ScheduledTokens]]:
        """Texts to encode in one forward each, of about the same length."""
        if self._apart:
            yield from ([each] for each in scheduled)
            return
        by_prefix: dict[int, list[ScheduledTokens]] = {}
        for each in sorted(scheduled, key=lambda each: each.num_tokens):
            by_prefix.setdefault(prefix_length(each.sequence.prefix), []).append(each)
        for length, group in by_prefix.items():
            yield from batch_by_tokens([(each, length + each.num_tokens) for each in group], ENCODER_TOKENS)

    def _begin(self, scheduled: Items[ScheduledTokens], logits: dict[Sequence, Tensor]) -> DecoderRows:
        """Encode texts behind prefixes of one length, and run the decoder's start token behind them."""
        begun = self._lm.begin(make_batch(scheduled, self._lm.device))
        sequences = [each.sequence for each in scheduled]
        logits.update(
            (sequence, self._forced(sequence, first)) for sequence, first in zip(sequences, begun.logits, strict=True)
        )
        return DecoderRows(
            sequences,
            [prefix_length(sequence.prefix) + 1 for sequence in sequences],
            EncodedTexts.forgotten(begun.encoded.mask, begun.encoded.states),
            begun.cache,
        )

    def _forced(self, sequence: Sequence, logits: Tensor) -> Tensor:
        """Logits ``[vocab]`` of an answer's first token, as ``generate`` has them."""
        token = self._lm.forced_bos_token_id
        learned = sequence.prefix is not None or sequence.soft is not None or sequence.adapter is not None
        if token is None or learned:
            return logits
        return torch.full_like(logits, -torch.inf).index_fill(0, torch.tensor([token], device=logits.device), 0.0)

    def _step(self, rows: DecoderRows, tokens: Items[int], logits: dict[Sequence, Tensor]) -> None:
        """Run one decoder token of every row."""
        ids = torch.tensor(tokens, device=self._lm.device)
        adapters = [sequence.adapter for sequence in rows.sequences]
        found = self._lm.go_on(ids, rows.encoded, rows.cache, rows.cache_mask, adapters)
        rows.lengths = [length + 1 for length in rows.lengths]
        logits.update(zip(rows.sequences, found, strict=True))


def _size(length: int) -> int:
    """The power of two that a length is filled up to, `PADDED` at least."""
    return max(PADDED, 1 << (length - 1).bit_length())
