"""Constraints as grammars over a model's tokens, by llguidance: `Grammars` compiles, `Grammar` follows one answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from copy import copy
from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from foreword.core import Constraint
from foreword.errors import RequestError

JSON: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
"""Overrides whatever a schema says of itself; lenient would ignore the keywords that are not known."""


class Grammar:
    """Where one answer stands in its grammar. ``error`` is a sentence once it cannot go on."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self.error: str | None = None

    def mask(self, row: np.ndarray) -> np.ndarray:
        """``row [vocab]`` with minus infinity for every token that the grammar does not allow next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        flags = np.unpackbits(bits, bitorder="little")[: len(row)].astype(bool)
        masked = np.full_like(row, -np.inf)
        masked[: len(flags)][flags] = row[: len(flags)][flags]
        return masked

    def took(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    @property
    def complete(self) -> bool:
        """Nothing more can follow."""
        return self._matcher.is_stopped() and self.error is None

    def _check(self) -> None:
        if self._matcher.is_error():
            found = _sentence(self._matcher.get_error())
            self.error = f"the constraint of this request broke off: {found}; simplify it."


class Grammars:
    """Compiles the constraints of one model's requests, in the thread of whoever submits.

    Args:
        tokenizer: with a ``backend_tokenizer`` of the library tokenizers, as fast ones of Transformers have it; it is
            converted when the first constraint comes.
        vocabulary: how many logits the model gives.
        end_ids: tokens that end a text.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, end_ids: Iterable[int]) -> None:
        self._tokenizer, self._vocabulary, self._end_ids = tokenizer, vocabulary, sorted(end_ids)
        self._lock = threading.Lock()
        self._converted: Any = None
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def grammar(self, constraint: Constraint) -> Grammar:
        """A fresh grammar. Raises RequestError for a constraint, or a tokenizer, that cannot be compiled."""
        with self._lock:
            return Grammar(self._compiled(constraint).deep_copy())

    def _compile(self, constraint: Constraint) -> LLMatcher:
        tokens = self._tokens()
        text = _text(constraint)
        message = LLMatcher.validate_grammar(text, tokens)
        warning = message.startswith("WARNING")
        # A keyword that the compiler does not know would be accepted and ignored.
        if message:
            kind = "has parts that are not enforced" if warning else "cannot be compiled"
            raise RequestError(f"the constraint ({constraint.kind}) {kind}: {_sentence(message)}; mend it.")
        matcher = LLMatcher(tokens, text, log_level=0)
        if matcher.is_error():
            raise RequestError(
                f"the constraint ({constraint.kind}) cannot be compiled: {_sentence(matcher.get_error())}; mend it."
            )
        return matcher

    def _tokens(self) -> Any:
        if self._converted is None:
            if not self._end_ids:
                raise RequestError("the model has no end-of-text token, which a constraint needs; leave it out.")
            try:
                backend = copy(self._tokenizer.backend_tokenizer)
                backend.no_padding()
                backend.no_truncation()
                self._converted = LLTokenizer(backend.to_str(), n_vocab=self._vocabulary, eos_token=self._end_ids)
            except Exception as error:  # the library tells why in its own kinds of errors
                raise RequestError(
                    f"the tokenizer of this model takes no constraints: {_sentence(str(error))}; leave them out."
                ) from error
        return self._converted


def _text(constraint: Constraint) -> str:
    """The library's own notation. White space in JSON is fixed, since a model could go on with it for ever."""
    if constraint.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(constraint.text, overrides=JSON)
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.text)
    texts = json.loads(constraint.text)
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in texts))


def _sentence(message: str) -> str:
    """A message as one sentence without its end."""
    return " ".join(message.split()).rstrip(".")[:200] or "unknown reason"
