"""`Fronting`: a prompt as vLLM takes it: token ids of its whole length, and a salt that keeps caches apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foreword.core import KVPrefix
from foreword.engine.protocol import Request
from foreword.errors import RequestError
from foreword.text.request import Prompt
from foreword.vllm.injection import Injection


@dataclass(frozen=True)
class Fronted:
    """A prompt with its prefix.

    Attributes:
        token_ids: as many as there are positions; those of a learned prefix are placeholders.
        injection: what the connector has to bring, or ``None``.
    """

    token_ids: tuple[int, ...]
    injection: Injection | None

    @property
    def prompt(self) -> Any:
        """For vLLM's engine."""
        salted = {} if self.injection is None else {"cache_salt": self.injection.salt}
        return {"prompt_token_ids": list(self.token_ids), **salted}

    @property
    def transfer(self) -> dict[str, Any] | None:
        """The request's ``kv_transfer_params``."""
        return None if self.injection is None else self.injection.params()


def check_plain(asked: Request | Prompt) -> None:
    """Raise RequestError for soft tokens behind the first field of a template, which no key/value prefix can carry."""
    if asked.soft is not None:
        raise RequestError(
            "this task has soft tokens inside its template, which vLLM is not given; serve it with --engine embedded."
        )


class Fronting:
    """Puts the tokens of prefixes in front of requests: a static one's own, so that penalties, usage and what is
    computed anew are right, and placeholders for a learned one.

    Args:
        tokenizer: of the model.
        key: see `Injection`.
    """

    def __init__(self, tokenizer: Any, key: str) -> None:
        # The highest id that is not special: what stands there is never run, but vLLM looks at it.
        special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
        self._reserved = next(token for token in range(len(tokenizer) - 1, -1, -1) if token not in special)
        self._key = key

    def __call__(
        self, token_ids: Sequence[int], prefix: KVPrefix | None, length: int, *, penalized: bool = False
    ) -> Fronted:
        """The request behind ``length`` positions of its prefix.

        Args:
            penalized: the answer is kept from repeating the prompt. vLLM counts placeholders as said; then they are
                what the request says itself, which changes nothing, but shares no cached blocks with other requests.

        Raises RequestError for a prefix that is in no bank, where the workers could not find it.
        """
        if prefix is None or not length:
            return Fronted(tuple(token_ids), None)
        if not prefix.source:
            raise RequestError(
                "vLLM's workers read prefixes from the bank, and this one is in none; publish it, with "
                "`foreword publish` or `foreword cache`."
            )
        if prefix.token_ids is None:
            front = (token_ids[0] if penalized else self._reserved,) * length
        else:
            front = prefix.token_ids[:length]
        return Fronted((*front, *token_ids), Injection.of(prefix, length, self._key))
