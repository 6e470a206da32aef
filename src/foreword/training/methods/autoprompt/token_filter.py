"""What a trigger may be made of: text that reads as the same tokens again, and does not say the answer."""

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
"""Stands between the trigger and the template, so that the two never share a token."""

# Tokens drawn for a place until one goes with those before it.
_DRAWS = 1000


@dataclass(frozen=True)
class TokenFilter:
    """How trigger tokens become text, and which may stand in one.

    Attributes:
        lm: its tokenizer and vocabulary.
        forbidden: words of the labels, in lower case.
    """

    lm: LanguageModel
    forbidden: tuple[str, ...]

    @classmethod
    def of(cls, lm: LanguageModel, verbalizer: Verbalizer) -> TokenFilter:
        words = {word.strip().casefold() for words in verbalizer.words.values() for word in words}
        return cls(lm, tuple(sorted(words - {""})))

    @cached_property
    def allowed(self) -> Tensor:
        """``[A]`` ids of ordinary tokens: printable, whole characters, no special ones and no word of a label."""
        tokenizer = self.lm.tokenizer
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        ordinary = sorted(set(tokenizer.get_vocab().values()) - special)
        ids = [token for token in ordinary if token < self.lm.identity.vocab_size and self._plain(self.text([token]))]
        if not ids:
            raise UsageError(f"the vocabulary of {self.lm.name} has no printable token to make a trigger of.")
        return torch.tensor(ids, device=self.lm.device)

    def text(self, trigger: Sequence[int]) -> str:
        """The text that stands for these tokens."""
        return self.lm.tokenizer.decode(list(trigger), clean_up_tokenization_spaces=False)

    def survives(self, trigger: Sequence[int]) -> bool:
        """Whether the text, alone and before the seam, is read as exactly these tokens, and says no label."""
        text, ids = self.text(trigger), list(trigger)
        return (
            self._plain(text)
            and self._read(text) == ids
            and self._read(text + SEAM) == [*ids, *seam.continuation(self.lm.tokenizer, SEAM, "")]
        )

    def near(self, trigger: Sequence[int], source: Random) -> tuple[int, ...]:
        """The trigger, with a drawn token wherever its own does not survive behind the ones before it.

        Raises UsageError if no token is found for a place.
        """
        kept: list[int] = []
        allowed = set(self.allowed.tolist())
        for token in trigger:
            drawn = (int(self.allowed[source.randrange(len(allowed))]) for _ in range(_DRAWS))
            tried = (each for each in chain((token,), drawn) if each in allowed)
            found = next((each for each in tried if self.survives([*kept, each])), None)
            if found is None:
                raise UsageError(
                    f"no token is read as itself behind {self.text(kept)!r}; use a smaller --length, or --init text."
                )
            kept.append(found)
        return tuple(kept)

    def _plain(self, text: str) -> bool:
        printable = text.isprintable() and "\ufffd" not in text and bool(text.strip())
        return printable and not any(word in text.casefold() for word in self.forbidden)

    def _read(self, text: str) -> list[int]:
        return seam.encode(self.lm.tokenizer, text, bos=False)
