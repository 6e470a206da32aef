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
    """Tokens to run behind a prefix: the input of an engine for one request.

    Attributes:
        token_ids: to be run, never empty; ids below 0 name rows of ``soft``.
        prefix: in front of them; ``None`` if no position of it is used.
        prefix_length: how many of its positions are used: all of a learned prefix, a slice of a static one.
        output_indices: see `EncodedExample`; empty for the last token.
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
        """Its tokens and output indices, for a `LabelScorer`."""
        return EncodedExample(self.token_ids, self.output_indices or (len(self.token_ids) - 1,))

    @property
    def for_token_logprobs(self) -> Prompt:
        """The prompt with the indices whose next token gets a log-probability: its own, or else all that have one.

        Soft tokens have none, since they are not in the vocabulary. Raises RequestError for an index whose next token
        is missing or soft.
        """
        ids = self.token_ids
        indices = tuple(index for index in range(len(ids) - 1) if ids[index + 1] >= 0)
        if wrong := set(self.output_indices) - set(indices):
            raise RequestError(
                f"no token of the vocabulary stands behind place {min(wrong)} of the prompt; leave it out."
            )
        return replace(self, output_indices=self.output_indices or indices)

    def room(self, context: int | None, *, is_encoder_decoder: bool = False) -> int | None:
        """Positions that the context leaves for an answer, below 0 for a longer prompt; ``None`` without a limit.

        Args:
            is_encoder_decoder: the answer has positions of its own, as many as the prompt, behind the same prefix.
        """
        if context is None:
            return None
        behind = context - self.prefix_length - len(self.token_ids)
        return context - self.prefix_length if is_encoder_decoder and behind >= 0 else behind

    def cap_max_tokens(self, default: int, context: int | None, *, is_encoder_decoder: bool = False) -> int:
        """A default ``max_tokens``, cut to what the context leaves for this prompt (`room`).

        At least 1: a prompt that leaves nothing is refused by the engine, which says why. A number that the user gives
        is refused there too, and never cut.
        """
        room = self.room(context, is_encoder_decoder=is_encoder_decoder)
        return default if room is None else max(1, min(default, room))
