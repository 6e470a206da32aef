"""`TokenFilter`: tokens that a trigger may be made of, which survive retokenization and do not say the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from random import Random

import torch
from torch import Tensor

from foreword.errors import UsageError
from foreword.models import LanguageModel
from foreword.text import seam
from foreword.text.verbalizer import Verbalizer

SEAM = "\n"
"""Text between the trigger and the template, so that the two never share a token."""

# Tokens drawn for a position until one survives behind those before it.
_DRAWS = 1000


@dataclass(frozen=True)
class TokenFilter:
    """Filters trigger tokens by the text that they decode to.

    Attributes:
        lm: the model, for its tokenizer and vocabulary.
        label_words: words of the labels, in lower case, which no trigger may contain.
    """

    lm: LanguageModel
    label_words: tuple[str, ...]

    @classmethod
    def from_verbalizer(cls, lm: LanguageModel, verbalizer: Verbalizer) -> TokenFilter:
        words = {word.strip().casefold() for words in verbalizer.words.values() for word in words}
        return cls(lm, tuple(sorted(words - {""})))

    @cached_property
    def allowed(self) -> Tensor:
        """``[A]`` ids of ordinary tokens: printable, whole characters, no special ones and no word of a label."""
        tokenizer = self.lm.tokenizer
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        ordinary = sorted(set(tokenizer.get_vocab().values()) - special)
        ids = [
            token
            for token in ordinary
            if token < self.lm.identity.vocab_size and self._is_allowed(self.decode([token]))
        ]
        if not ids:
            raise UsageError(f"the vocabulary of {self.lm.name} has no printable token to make a trigger of.")
        return torch.tensor(ids, device=self.lm.device)

    def decode(self, trigger: Sequence[int]) -> str:
        """The text of a trigger."""
        return self.lm.tokenizer.decode(list(trigger), clean_up_tokenization_spaces=False)

    def accepts(self, trigger: Sequence[int]) -> bool:
        """Whether the text, alone and before the seam, is tokenized into exactly these tokens, and says no label."""
        text, ids = self.decode(trigger), list(trigger)
        return (
            self._is_allowed(text)
            and self._tokenize(text) == ids
            and self._tokenize(text + SEAM) == [*ids, *seam.continuation_ids(self.lm.tokenizer, SEAM, "")]
        )

    def repaired(self, trigger: Sequence[int], rng: Random) -> tuple[int, ...]:
        """The trigger, with a random token wherever its own is not accepted behind the ones before it.

        Raises UsageError if no token is found for a position.
        """
        kept: list[int] = []
        allowed = set(self.allowed.tolist())
        for token in trigger:
            drawn = (int(self.allowed[rng.randrange(len(allowed))]) for _ in range(_DRAWS))
            candidates = (each for each in chain((token,), drawn) if each in allowed)
            found = next((each for each in candidates if self.accepts([*kept, each])), None)
            if found is None:
                raise UsageError(
                    f"no token is read as itself behind {self.decode(kept)!r}; use a smaller --length, or --init text."
                )
            kept.append(found)
        return tuple(kept)

    def _is_allowed(self, text: str) -> bool:
        """Whether a text is printable and contains no word of a label."""
        printable = text.isprintable() and "\ufffd" not in text and bool(text.strip())
        return printable and not any(word in text.casefold() for word in self.label_words)

    def _tokenize(self, text: str) -> list[int]:
        return seam.encode(self.lm.tokenizer, text, bos=False)
