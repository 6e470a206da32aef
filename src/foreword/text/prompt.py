"""`Prompt`: the tokens that an engine runs for one request, and the prefix in front of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from foreword.core import Adapter, KVPrefix
from foreword.errors import RequestError
from foreword.text.encoded_example import EncodedExample

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Prompt:
    """What an engine is given.

    Attributes:
        token_ids: to be run, never empty; ids below 0 name rows of ``soft``.
        prefix: stands in front of them; ``None`` if no position of it is used.
        prefix_length: how many of its positions are used: all of a learned prefix, a slice of a static one.
        places: where in ``token_ids`` answers are read; the last token if empty.
        soft: ``[S, hidden]`` soft tokens inside ``token_ids``, or ``None``.
        adapter: changes of the model's layers for this request, or ``None``.
    """

    token_ids: tuple[int, ...]
    prefix: KVPrefix | None
    prefix_length: int
    output_indices: tuple[int, ...] = ()
    soft: torch.Tensor | None = None
    adapter: Adapter | None = None

    @property
    def encoded_example(self) -> EncodedExample:
        return EncodedExample(self.token_ids, self.output_indices or (len(self.token_ids) - 1,))

    @property
    def for_token_logprobs(self) -> Prompt:
        """The prompt with the places whose next tokens are measured: its own, or else all that have one.

        A soft token is not in the vocabulary, so nothing predicts it. Raises RequestError for a place without a next
        token.
        """
        ids = self.token_ids
        found = tuple(place for place in range(len(ids) - 1) if ids[place + 1] >= 0)
        if wrong := set(self.output_indices) - set(found):
            raise RequestError(
                f"no token of the vocabulary stands behind place {min(wrong)} of the prompt; leave it out."
            )
        return replace(self, output_indices=self.output_indices or found)

    def cap_max_tokens(self, default: int, context: int | None) -> int:
        """A default number of answer tokens, cut to the room behind this prompt.

        At least 1, so that the engine says what is wrong with a prompt that leaves none. What a user asks for is
        not cut but refused there.
        """
        if context is None:
            return default
        return max(1, min(default, context - self.prefix_length - len(self.token_ids)))
