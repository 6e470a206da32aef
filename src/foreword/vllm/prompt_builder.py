"""`PromptBuilder`: a prompt as vLLM takes it: token ids of its whole length, and a salt that keeps caches apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foreword.core import KVPrefix, soft_id
from foreword.errors import RequestError
from foreword.vllm.prefix_load import PrefixReference

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PrefixedPrompt:
    """A prompt with its prefix.

    Attributes:
        token_ids: as many as there are positions; those of a learned prefix and of soft tokens are placeholders.
        injection: what the connector has to bring, or ``None``.
        soft: soft tokens ``[n, hidden]`` inside the request, or ``None``.
        places: their positions.
    """

    token_ids: tuple[int, ...]
    injection: PrefixReference | None
    soft: torch.Tensor | None = None
    places: tuple[int, ...] = ()

    @property
    def prompt(self) -> Any:
        """For vLLM's engine, which hashes embeddings into the names of its blocks."""
        salted = {} if self.injection is None else {"cache_salt": self.injection.salt}
        plain = {"prompt_token_ids": list(self.token_ids), **salted}
        if self.soft is None:
            return plain
        embeds = self.soft.new_zeros(len(self.token_ids), self.soft.shape[1])
        embeds[list(self.places)] = self.soft
        soft = frozenset(self.places)
        known = [place not in soft for place in range(len(self.token_ids))]
        return {**plain, "prompt_embeds": embeds, "prompt_is_token_ids": known}

    @property
    def transfer(self) -> dict[str, Any] | None:
        """The request's ``kv_transfer_params``."""
        return None if self.injection is None else self.injection.params()


class PromptBuilder:
    """Puts the tokens of prefixes in front of requests: a static one's own, so that penalties, usage and what is
    computed anew are right, and placeholders for a learned one.

    Args:
        tokenizer: of the model.
        key: see `PrefixReference`.
        dtype: of the model, for soft tokens; ``None`` where vLLM is given token ids alone.
    """

    def __init__(self, tokenizer: Any, key: str, dtype: torch.dtype | None = None) -> None:
        # The highest id that is not special: what stands there is never run, but vLLM looks at it.
        special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
        self._reserved = next(token for token in range(len(tokenizer) - 1, -1, -1) if token not in special)
        self._key = key
        self._dtype = dtype

    def __call__(
        self,
        token_ids: Sequence[int],
        prefix: KVPrefix | None,
        length: int,
        *,
        soft: torch.Tensor | None = None,
        penalized: bool = False,
    ) -> PrefixedPrompt:
        """The request behind ``length`` positions of its prefix.

        Args:
            token_ids: ids below 0 name rows of ``soft``.
            penalized: the answer is kept from repeating the prompt. vLLM counts placeholders as said; then they are
                what the request says itself, which changes nothing, but shares no cached blocks with other requests.

        Raises RequestError for a prefix that is in no bank, where the workers could not find it, and for soft tokens
        where vLLM does not take them.
        """
        reserved = next((token for token in token_ids if token >= 0), self._reserved) if penalized else self._reserved
        own = tuple(token if token >= 0 else reserved for token in token_ids)
        rows = [soft_id(token) for token in token_ids if token < 0]  # it is its own inverse
        if rows and self._dtype is None:
            raise RequestError(
                "this task has soft tokens inside its template, which vLLM takes only behind `foreword serve --engine "
                "vllm -- --enable-prompt-embeds`; serve it so, or with --engine embedded."
            )
        front, injection = self._in_front(prefix, length, reserved)
        if not rows:
            return PrefixedPrompt((*front, *own), injection)
        assert soft is not None
        places = tuple(len(front) + place for place, token in enumerate(token_ids) if token < 0)
        return PrefixedPrompt((*front, *own), injection, soft[rows].to(self._dtype), places)

    def _in_front(
        self, prefix: KVPrefix | None, length: int, reserved: int
    ) -> tuple[tuple[int, ...], PrefixReference | None]:
        if prefix is None or not length:
            return (), None
        if not prefix.source:
            raise RequestError(
                "vLLM's workers read prefixes from the bank, and this one is in none; publish it, with "
                "`foreword publish` or `foreword cache`."
            )
        known = (reserved,) * length if prefix.token_ids is None else prefix.token_ids[:length]
        return tuple(known), PrefixReference.of(prefix, length, self._key)
