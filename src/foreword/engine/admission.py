"""`Admission`: refuses what can never run, with a sentence that says why, before anything is queued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from foreword.core import ModelIdentity
from foreword.engine.protocol import Request
from foreword.errors import PromptTooLong, RequestError
from foreword.text.request import Prompt


@dataclass(frozen=True)
class Admission:
    """Limits of an engine.

    Attributes:
        identity: what every prefix must agree with.
        context: positions that a request may take, prefix and answer included; ``None`` without a limit.
        capacity: positions that the cache can hold.
        allow_other_weights: accept prefixes made for other weights of the same shape.
        in_front: positions that a prefix of a length takes in the cache.
    """

    identity: ModelIdentity
    context: int | None
    capacity: int
    allow_other_weights: bool
    in_front: Callable[[int], int] = int

    def check(self, request: Request) -> None:
        """Raise RequestError, PromptTooLong or ModelMismatch for an answer that can never be generated."""
        self._check_tokens(request)
        self._check_prefix(request)
        self._check_bias(request)
        prompt, wanted = request.prompt_tokens, request.sampling.max_tokens
        self._check_room(prompt, 1)
        if self.context is not None and prompt + wanted > self.context:
            raise PromptTooLong(
                f"the prompt has {prompt} tokens and max_tokens is {wanted}, together more than the context of "
                f"{self.context}; ask for at most {self.context - prompt} tokens."
            )
        if (needed := request.own_limit + self.in_front(request.prefix_length)) > self.capacity:
            raise PromptTooLong(
                f"the request needs {needed} positions of the cache, which has {self.capacity}; shorten it, or give "
                "the engine a larger cache."
            )

    def check_prompt(self, prompt: Prompt, longest_word: int) -> None:
        """The same for a prompt that words of up to ``longest_word`` tokens are scored behind."""
        self._check_tokens(prompt)
        self._check_prefix(prompt)
        self._check_room(prompt.prefix_length + len(prompt.token_ids), longest_word)

    def _check_tokens(self, asked: Request | Prompt) -> None:
        if not asked.token_ids:
            raise RequestError("the request is empty behind its prefix; send at least one token.")
        low, high = min(asked.token_ids), max(asked.token_ids)
        soft = asked.soft.shape[0] if asked.soft is not None else 0
        if asked.soft is not None and asked.soft.shape[1:] != (self.identity.hidden_size,):
            raise RequestError(
                f"the request has soft tokens of width {asked.soft.shape[-1]}, the model takes "
                f"{self.identity.hidden_size}."
            )
        if low < -soft or high >= self.identity.vocab_size:
            wrong = low if low < -soft else high
            raise RequestError(f"token id {wrong} is outside 0..{self.identity.vocab_size - 1}.")

    def _check_bias(self, request: Request) -> None:
        last = self.identity.vocab_size - 1
        wrong = next((token for token in request.sampling.logit_bias if token > last), None)
        if wrong is not None:
            raise RequestError(f"logit_bias names token id {wrong}, which is outside 0..{last}.")

    def _check_prefix(self, asked: Request | Prompt) -> None:
        prefix, length = asked.prefix, asked.prefix_length
        if prefix is None:
            if length:
                raise RequestError(f"the request uses {length} positions of a prefix, but has none.")
            return
        prefix.model.check(self.identity, "the prefix of this request", allow_other_weights=self.allow_other_weights)
        # Zero positions of a prefix would be a silent answer of the base model.
        least = 1 if prefix.token_ids is not None else prefix.length
        if not least <= length <= prefix.length:
            raise RequestError(
                f"the request uses {length} positions of a prefix that serves {least} to {prefix.length}."
            )

    def _check_room(self, prompt: int, ahead: int) -> None:
        if self.context is not None and prompt + ahead > self.context:
            behind = "one more token" if ahead == 1 else f"a word of {ahead} tokens"
            raise PromptTooLong(
                f"the prompt has {prompt} tokens with its prefix, the context of {self.context} has no room for "
                f"{behind}; shorten it."
            )
