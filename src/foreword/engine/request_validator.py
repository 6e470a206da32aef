"""`RequestValidator`: refuses requests that can never run, with a sentence that says why, before they are queued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from foreword.core import ModelIdentity
from foreword.core.token_rows import check_token_ids
from foreword.engine.protocol import Request
from foreword.errors import PromptTooLong, RequestError
from foreword.text.prompt import Prompt


@dataclass(frozen=True)
class RequestValidator:
    """Limits of an engine.

    Attributes:
        identity: what every prefix must agree with.
        context: positions that a request may take, prefix and answer included; ``None`` without a limit.
        cache_positions: positions that the cache can hold.
        allow_other_weights: accept prefixes made for other weights of the same shape.
        prefix_cache_positions: positions that a prefix of a length takes in the cache.
        tokenizer: names tokens in errors; ``None`` leaves them numbers.
        is_encoder_decoder: the answer has positions of its own, as many as the text.
    """

    identity: ModelIdentity
    context: int | None
    cache_positions: int
    allow_other_weights: bool
    prefix_cache_positions: Callable[[int], int] = int
    tokenizer: Any = None
    is_encoder_decoder: bool = False

    def check(self, request: Request) -> None:
        """Raise RequestError, PromptTooLong or ModelMismatch for a request that can never be generated."""
        self._check_tokens(request)
        self._check_prefix(request)
        self._check_logit_bias(request)
        prompt, max_tokens = request.prompt_tokens, request.sampling.max_tokens
        if self.is_encoder_decoder:
            self._check_context(prompt, 0)
            self._check_decoder(request.prefix_length, max_tokens)
        else:
            self._check_joined(prompt, max_tokens)
        needed = request.max_cached_tokens + self.prefix_cache_positions(request.prefix_length)
        if needed > self.cache_positions:
            raise PromptTooLong(
                f"the request needs {needed} positions of the cache, which has {self.cache_positions}; shorten it, or "
                "give the engine a larger cache."
            )

    def check_prompt(self, prompt: Prompt, answer_tokens: int) -> None:
        """The same for a prompt that is scored, with words of up to ``answer_tokens`` tokens behind it."""
        self._check_tokens(prompt)
        self._check_prefix(prompt)
        if not self.is_encoder_decoder:
            self._check_context(prompt.prefix_length + len(prompt.token_ids), answer_tokens)
            return
        # What stands behind the first place is the decoder's.
        text = prompt.output_indices[0] + 1 if prompt.output_indices else len(prompt.token_ids)
        self._check_context(prompt.prefix_length + text, 0)
        self._check_decoder(prompt.prefix_length, len(prompt.token_ids) - text + answer_tokens)

    def _check_joined(self, prompt: int, max_tokens: int) -> None:
        self._check_context(prompt, 1)
        if self.context is not None and prompt + max_tokens > self.context:
            raise PromptTooLong(
                f"the prompt has {prompt} tokens and max_tokens is {max_tokens}, together more than the context of "
                f"{self.context}; ask for at most {self.context - prompt} tokens."
            )

    def _check_decoder(self, prefix: int, answer_tokens: int) -> None:
        if self.context is not None and prefix + answer_tokens > self.context:
            raise PromptTooLong(
                f"an answer of {answer_tokens} tokens is longer than the decoder's context of {self.context} leaves; "
                f"ask for at most {self.context - prefix} (max_tokens)."
            )

    def _check_tokens(self, item: Request | Prompt) -> None:
        if not item.token_ids:
            raise RequestError("the request is empty behind its prefix; send at least one token.")
        low, high = min(item.token_ids), max(item.token_ids)
        soft = item.soft.shape[0] if item.soft is not None else 0
        if item.soft is not None and item.soft.shape[1:] != (self.identity.hidden_size,):
            raise RequestError(
                f"the request has soft tokens of width {item.soft.shape[-1]}, the model takes "
                f"{self.identity.hidden_size}."
            )
        if low < -soft:
            raise RequestError(f"token id {low} is outside 0..{self.identity.vocab_size - 1}.")
        if high >= self.identity.vocab_size:
            check_token_ids(self.tokenizer, self.identity.vocab_size, item.token_ids)

    def _check_logit_bias(self, request: Request) -> None:
        last = self.identity.vocab_size - 1
        wrong = next((token for token in request.sampling.logit_bias if token > last), None)
        if wrong is not None:
            raise RequestError(f"logit_bias names token id {wrong}, which is outside 0..{last}.")

    def _check_prefix(self, item: Request | Prompt) -> None:
        prefix, length = item.prefix, item.prefix_length
        if prefix is None:
            if length:
                raise RequestError(f"the request uses {length} positions of a prefix, but has none.")
            return
        prefix.model.check(self.identity, "the prefix of this request", allow_other_weights=self.allow_other_weights)
        # Zero positions of a prefix would be a silent answer of the base model.
        least = prefix.min_length
        if not least <= length <= prefix.length:
            raise RequestError(
                f"the request uses {length} positions of a prefix that serves {least} to {prefix.length}."
            )

    def _check_context(self, prompt: int, answer_tokens: int) -> None:
        if self.context is not None and prompt + answer_tokens > self.context:
            if not answer_tokens:
                raise PromptTooLong(
                    f"the prompt has {prompt} tokens with its prefix, more than the context of {self.context}; "
                    "shorten it."
                )
            behind = "one more token" if answer_tokens == 1 else f"a word of {answer_tokens} tokens"
            raise PromptTooLong(
                f"the prompt has {prompt} tokens with its prefix, the context of {self.context} has no room for "
                f"{behind}; shorten it."
            )
