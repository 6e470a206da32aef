"""PET's auxiliary language modelling loss on unlabeled texts (Schick and Schütze 2021, arXiv:2001.07676, section 3.2).

It keeps a model that is trained on few rows from forgetting its language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from foreword.core import Batch, Front
from foreword.models import LanguageModel
from foreword.text.encoded_example import EncodedExample
from foreword.training.data.examples import Example
from foreword.training.modules.losses import Loss

# Share of a text's tokens that a masked model predicts.
MASKED_SHARE = 0.15
# Next tokens of a text that a causal model predicts: rows of logits are long.
NEXT_TOKENS = 32


@dataclass(frozen=True)
class UnlabeledText:
    """A text and the tokens to predict in it.

    Attributes:
        token_ids: input of the model, masked for a masked one.
        places: positions whose outputs are read.
        targets: the token to predict at each of them.
    """

    token_ids: tuple[int, ...]
    places: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class UnlabeledTexts:
    """Unlabeled rows in filled patterns, with tokens to predict chosen at random.

    Attributes:
        encoded: the rows in tokens, each up to its answer or around it.
        seed: of the choice of tokens to predict.
        mask_token_id: of a masked model; ``None`` for causal models, which predict next tokens.
        special_ids: tokens that are never masked.
    """

    encoded: tuple[EncodedExample, ...]
    seed: int
    mask_token_id: int | None = None
    special_ids: frozenset[int] = frozenset()

    @classmethod
    def for_model(cls, lm: LanguageModel, encoded: Sequence[EncodedExample], seed: int) -> UnlabeledTexts:
        mask = None if lm.causal else int(lm.tokenizer.mask_token_id)
        return cls(tuple(encoded), seed, mask, frozenset(lm.tokenizer.all_special_ids))

    def __getitem__(self, number: int) -> UnlabeledText:
        """The text with this number, from 0 without end: the rows come again, with other tokens to predict."""
        ids = self.encoded[number % len(self.encoded)].token_ids
        rng = Random(f"{self.seed}/{number}")
        if self.mask_token_id is None:
            read = sorted(rng.sample(range(len(ids) - 1), min(NEXT_TOKENS, len(ids) - 1)))
            return UnlabeledText(ids, tuple(read), tuple(ids[place + 1] for place in read))
        ordinary = [place for place, token in enumerate(ids) if token not in self.special_ids]
        count = min(len(ordinary), max(1, round(MASKED_SHARE * len(ordinary))))
        chosen = sorted(rng.sample(ordinary, count))
        masked = list(ids)
        for place in chosen:
            masked[place] = self.mask_token_id
        return UnlabeledText(tuple(masked), tuple(chosen), tuple(ids[place] for place in chosen))


@dataclass(frozen=True)
class ExampleWithUnlabeled(Example):
    """An example with an unlabeled text, another one in every epoch.

    Attributes:
        texts: unlabeled texts.
        number: of the text of the first epoch.
        stride: from the text of an epoch to that of the next.
        text: the text of the present epoch.
    """

    texts: UnlabeledTexts | None = None
    number: int = 0
    stride: int = 1
    text: UnlabeledText | None = None

    def at_epoch(self, epoch: int) -> Example:
        assert self.texts is not None
        return replace(self, text=self.texts[self.number + epoch * self.stride])


def with_unlabeled(examples: Sequence[Example], texts: UnlabeledTexts) -> list[Example]:
    """The examples, each with an unlabeled text, so that an epoch has as many different texts as examples."""
    return [
        ExampleWithUnlabeled(**vars(example), texts=texts, number=number, stride=len(examples))
        for number, example in enumerate(examples)
    ]


@dataclass(frozen=True)
class AuxiliaryLMLoss:
    """The loss of the labels plus a weighted language modelling loss of the unlabeled texts.

    Attributes:
        label_loss: of the examples themselves.
        lm_weight: weight of a text's mean loss beside an example's.
    """

    label_loss: Loss
    lm_weight: float

    def total(self, lm: LanguageModel, front: Front, examples: Sequence[Example]) -> Tensor:
        texts = [example.text for example in examples if isinstance(example, ExampleWithUnlabeled) and example.text]
        return self.label_loss.total(lm, front, examples) + self.lm_weight * _lm_loss(lm, front, texts)

    def normalizer(self, examples: Sequence[Example]) -> float:
        return self.label_loss.normalizer(examples)


def _lm_loss(lm: LanguageModel, front: Front, texts: Sequence[UnlabeledText]) -> Tensor:
    """Sum over texts of the mean cross-entropy of their targets, a scalar."""
    batch = Batch.from_rows(front, [text.token_ids for text in texts], device=lm.device)
    starts = batch.starts[len(batch.lengths) - len(texts) :]
    places = [start + at for start, text in zip(starts, texts, strict=False) for at in text.places]
    targets = [token for text in texts for token in text.targets]
    weights = [1 / len(text.places) for text in texts for _ in text.places]
    logits = lm.logits(batch, torch.tensor(places, dtype=torch.long, device=lm.device))
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    each = F.cross_entropy(wide, torch.tensor(targets, dtype=torch.long, device=lm.device), reduction="none")
    return (each * each.new_tensor(weights)).sum()
