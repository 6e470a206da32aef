"""`Subject`: one tiny model as Foreword and as plain Transformers run it, with something to learn in front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from foreword.bench.conformance.families import PAD, VOCABULARY, Family
from foreword.core import Batch, Front, KVPrefix, soft_id
from foreword.models import LanguageModel
from foreword.models.load import load_model

LENGTH = 9
# Of several lengths, one of them a single token.
TEXTS = (9, 1, 21)
WRITTEN = (3, 1, 5)


@dataclass(frozen=True)
class Subject:
    """
    Attributes:
        family: which it is of.
        folder: where it is saved.
        lm: as Foreword loads it, in float32.
        seed: of everything random about it.
    """

    family: Family
    folder: Path
    lm: LanguageModel
    seed: int

    @classmethod
    def of(cls, family: Family, folder: Path, seed: int) -> Subject:
        """Save a tiny model and load it. Raises UnsupportedModel if it carries no prefix."""
        family.save(folder, seed)
        return cls(
            family, folder, load_model(str(folder), dtype="float32", device="cpu", progress=lambda _: None), seed
        )

    @cached_property
    def stock(self) -> Any:
        """The same weights in a model that never heard of Foreword."""
        return self.family.stock(self.folder)

    def tokens(self, length: int, number: int) -> tuple[int, ...]:
        """Random ordinary tokens; another ``number`` gives others."""
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        return tuple(torch.randint(5, VOCABULARY - 44, (length,), generator=generator).tolist())

    def prefix(self, length: int, number: int = 0) -> KVPrefix:
        """Random keys and values: what no text could give."""
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        shapes = self.lm.identity.layers
        keys, values = (
            tuple(torch.randn(s.kv_heads, length, width(s), generator=generator) for s in shapes)
            for width in (lambda s: s.key_dim, lambda s: s.value_dim)
        )
        return KVPrefix(self.lm.identity, keys, values, offset=length)

    def soft(self, length: int = LENGTH) -> Tensor:
        """Random soft tokens ``[length, hidden]``."""
        generator = torch.Generator().manual_seed(1000 * self.seed)
        return torch.randn(length, self.lm.identity.hidden_size, generator=generator)

    def learned(self) -> list[Tensor]:
        """Values that gradients go to: keys and values of a prefix, or soft tokens of an encoder-decoder."""
        if self.lm.is_encoder_decoder:
            return [self.soft().requires_grad_()]
        prefix = self.prefix(LENGTH)
        return [tensor.requires_grad_() for tensor in (*prefix.keys, *prefix.values)]

    def ours(self, learned: Sequence[Tensor]) -> list[Tensor]:
        """Logits ``[tokens, vocab]`` of every row behind what is learned, by Foreword: one ragged batch."""
        texts = [self.tokens(length, row) for row, length in enumerate(TEXTS)]
        if not self.lm.is_encoder_decoder:
            batch = Batch.from_rows(Front(self._as_prefix(learned)), texts)
            return list(self.lm.logits(batch, torch.arange(sum(TEXTS))).split(TEXTS))
        (soft,) = learned
        rows: list[Sequence[int]] = []
        parents: list[int | None] = []
        for row, text in enumerate(texts):
            parents += [None, len(rows)]
            rows += [(*map(soft_id, range(len(soft))), *text), self.written(row)]
        batch = Batch.from_rows(Front(inner_soft=soft), rows, parents)
        ends = [batch.starts[at] for at in range(1, len(rows), 2)]
        # The decoder's first token comes out behind the text itself.
        places = [end - 1 + at for end, length in zip(ends, WRITTEN, strict=True) for at in range(length + 1)]
        return list(self.lm.logits(batch, torch.tensor(places)).split([length + 1 for length in WRITTEN]))

    def theirs(self, learned: Sequence[Tensor]) -> list[Tensor]:
        """The same by Transformers alone, a row at a time."""
        texts = [torch.tensor([self.tokens(length, row)]) for row, length in enumerate(TEXTS)]
        if not self.lm.is_encoder_decoder:
            prefix = self._as_prefix(learned)
            return [self.stock(input_ids=ids, past_key_values=self.past(prefix)).logits[0] for ids in texts]
        embeddings, (soft,) = self.stock.get_input_embeddings(), learned
        return [
            self.stock(
                inputs_embeds=torch.cat([soft[None], embeddings(ids)], 1), decoder_input_ids=self.begun(row)
            ).logits[0]
            for row, ids in enumerate(texts)
        ]

    def written(self, row: int) -> tuple[int, ...]:
        """What the decoder has written so far."""
        return self.tokens(WRITTEN[row], 100 + row)

    def begun(self, row: int) -> Tensor:
        """The same behind the token that it begins with."""
        return torch.tensor([[PAD, *self.written(row)]])

    def past(self, prefix: KVPrefix | None) -> DynamicCache:
        """A cache of Transformers that holds a prefix."""
        past = DynamicCache(config=self.stock.config)
        if prefix is not None:
            for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
                past.update(key[None], value[None], layer)
        return past

    def _as_prefix(self, learned: Sequence[Tensor]) -> KVPrefix:
        half = len(learned) // 2
        return replace(self.prefix(LENGTH), keys=tuple(learned[:half]), values=tuple(learned[half:]))


def largest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference between two rows of tensors."""
    return max(float((a - b).detach().abs().max()) for a, b in zip(found, expected, strict=True))
