"""`PromptBuilder`: a prompt as vLLM takes it: token ids of its whole length, and the salt of its prefix cache."""

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
    """A prompt behind its prefix.

    Attributes:
        token_ids: one for every position; those of a learned prefix and of soft tokens are placeholders.
        reference: the prefix that the connector has to load, or ``None``.
        soft: ``[S, hidden]`` soft tokens inside the request, or ``None``.
        soft_positions: their ``[S]`` positions.
        own_salt: see `foreword.engine.protocol.Sender.cache_salt`.
    """

    token_ids: tuple[int, ...]
    reference: PrefixReference | None
    soft: torch.Tensor | None = None
    soft_positions: tuple[int, ...] = ()
    own_salt: str = ""

    @property
    def cache_salt(self) -> str | None:
        """Of vLLM's prefix cache; ``None`` shares its blocks with all that have none."""
        parts = [] if self.reference is None else [self.reference.cache_salt]
        return "-".join([*parts, self.own_salt] if self.own_salt else parts) or None

    def to_vllm(self) -> dict[str, Any]:
        """The prompt of ``AsyncLLM.generate``; vLLM hashes the embeddings into the names of its blocks."""
        prompt: dict[str, Any] = {"prompt_token_ids": list(self.token_ids)}
        if self.cache_salt is not None:
            prompt["cache_salt"] = self.cache_salt
        if self.soft is not None:
            embeds = self.soft.new_zeros(len(self.token_ids), self.soft.shape[1])
            embeds[list(self.soft_positions)] = self.soft
            soft = frozenset(self.soft_positions)
            prompt["prompt_embeds"] = embeds
            prompt["prompt_is_token_ids"] = [position not in soft for position in range(len(self.token_ids))]
        return prompt

    @property
    def kv_transfer_params(self) -> dict[str, Any] | None:
        """Of the request; ``None`` without a prefix."""
        return None if self.reference is None else self.reference.to_params()


class PromptBuilder:
    """Puts the tokens of a prefix in front of a request: the ids of a static one, so that penalties, usage and
    recomputation are right, and placeholders for a learned one.

    Args:
        tokenizer: of the model.
        key: see `PrefixReference`.
        dtype: of the model, for soft tokens; ``None`` where vLLM takes token ids alone.
    """

    def __init__(self, tokenizer: Any, key: str, dtype: torch.dtype | None = None) -> None:
        # The highest id that is not special: a placeholder is never run, but vLLM looks at it.
        special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
        self._placeholder = next(token for token in range(len(tokenizer) - 1, -1, -1) if token not in special)
        self._key = key
        self._dtype = dtype

    def build(
        self,
        token_ids: Sequence[int],
        prefix: KVPrefix | None,
        prefix_length: int,
        *,
        soft: torch.Tensor | None = None,
        penalized: bool = False,
        cache_salt: str = "",
    ) -> PrefixedPrompt:
        """The prompt behind the first ``prefix_length`` positions of its prefix.

        Args:
            token_ids: ids below 0 name rows of ``soft``.
            penalized: the request has a repetition penalty, which vLLM also applies to placeholders. They are then a
                token of the request itself, which changes nothing, but cached blocks are not shared with other
                requests.
            cache_salt: see `foreword.engine.protocol.Sender`.

        Raises RequestError for a prefix that is in no bank, where the workers could not find it, and for soft tokens
        where vLLM does not take them.
        """
        placeholder = self._placeholder
        if penalized:
            placeholder = next((token for token in token_ids if token >= 0), placeholder)
        own = tuple(token if token >= 0 else placeholder for token in token_ids)
        rows = [soft_id(token) for token in token_ids if token < 0]  # it is its own inverse
        if rows and self._dtype is None:
            raise RequestError(
                "this task has soft tokens inside its template, which vLLM takes only behind `foreword serve --engine "
                "vllm -- --enable-prompt-embeds`; serve it so, or with --engine embedded."
            )
        front, reference = self._prefix_tokens(prefix, prefix_length, placeholder)
        if not rows:
            return PrefixedPrompt((*front, *own), reference, own_salt=cache_salt)
        assert soft is not None
        positions = tuple(len(front) + place for place, token in enumerate(token_ids) if token < 0)
        return PrefixedPrompt((*front, *own), reference, soft[rows].to(self._dtype), positions, cache_salt)

    def _prefix_tokens(
        self, prefix: KVPrefix | None, length: int, placeholder: int
    ) -> tuple[tuple[int, ...], PrefixReference | None]:
        if prefix is None or not length:
            return (), None
        if not prefix.source:
            raise RequestError(
                "vLLM's workers read prefixes from the bank, and this one is in none; publish it, with "
                "`foreword publish` or `foreword cache`."
            )
        tokens = (placeholder,) * length if prefix.token_ids is None else prefix.token_ids[:length]
        return tokens, PrefixReference.from_prefix(prefix, length, self._key)
