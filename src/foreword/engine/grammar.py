"""Constrained decoding by llguidance: `GrammarCompiler` compiles a constraint, `GrammarMatcher` follows one answer."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from foreword.core import Constraint
from foreword.core.json_reader import parse_json
from foreword.errors import RequestError
from foreword.text.detokenize import special_token_id

JSON_OPTIONS: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
"""Overrides what a schema says of itself; lenient would ignore unknown keywords."""

_SPECIAL_LOOKING = re.compile(r"(\[[A-Z_]+\]|<[^<>\s]+>)")


class GrammarMatcher:
    """State of one answer in its grammar.

    Attributes:
        error: a sentence, once the matcher failed; ``None`` before.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self.error: str | None = None

    def mask(self, logits: np.ndarray) -> np.ndarray:
        """``logits [vocab]`` with minus infinity for every token that the grammar does not allow next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        flags = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        masked = np.full_like(logits, -np.inf)
        masked[: len(flags)][flags] = logits[: len(flags)][flags]
        return masked

    def accept_token(self, token: int) -> None:
        """Advance by a token of the answer."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped() and self.error is None

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _clause(self._matcher.get_error())
            self.error = f"the constraint of this request broke off: {reason}; simplify it."


class GrammarCompiler:
    """Compiles the constraints of one model's requests, in the thread that submits them; keeps the last 64.

    Args:
        tokenizer: with a ``backend_tokenizer`` of the library tokenizers, as fast ones of Transformers have it; it is
            converted when the first constraint comes.
        vocab_size: how many logits the model gives.
        eos_token_ids: tokens that end a text.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._tokenizer, self._vocab_size, self._eos_token_ids = tokenizer, vocab_size, sorted(eos_token_ids)
        self._lock = threading.Lock()
        self._converted_tokenizer: Any = None
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def compile(self, constraint: Constraint) -> GrammarMatcher:
        """A matcher at the beginning of the constraint's grammar.

        Raises RequestError for a constraint, or a tokenizer, that cannot be compiled.
        """
        with self._lock:
            return GrammarMatcher(self._compiled(constraint).deep_copy())

    def _compile(self, constraint: Constraint) -> LLMatcher:
        tokenizer = self._ll_tokenizer()
        grammar = _grammar(constraint, self._tokenizer)
        message = LLMatcher.validate_grammar(grammar, tokenizer)
        warning = message.startswith("WARNING")
        # A keyword that the compiler does not know would be accepted and ignored.
        if message:
            kind = "has parts that are not enforced" if warning else "cannot be compiled"
            raise RequestError(f"the constraint ({constraint.kind}) {kind}: {_clause(message)}; mend it.")
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise RequestError(
                f"the constraint ({constraint.kind}) cannot be compiled: {_clause(matcher.get_error())}; mend it."
            )
        return matcher

    def _ll_tokenizer(self) -> Any:
        if self._converted_tokenizer is None:
            if not self._eos_token_ids:
                raise RequestError("the model has no end-of-text token, which a constraint needs; leave it out.")
            try:
                backend = copy(self._tokenizer.backend_tokenizer)
                backend.no_padding()
                backend.no_truncation()
                # Tokens without a logit are known to the grammar, and never chosen (`GrammarMatcher.mask`).
                known = max(self._vocab_size, backend.get_vocab_size())
                self._converted_tokenizer = LLTokenizer(backend.to_str(), n_vocab=known, eos_token=self._eos_token_ids)
            except Exception as error:  # the library tells why in its own kinds of errors
                raise RequestError(
                    f"the tokenizer of this model takes no constraints: {_clause(str(error))}; leave them out."
                ) from error
        return self._converted_tokenizer


def _grammar(constraint: Constraint, tokenizer: Any) -> str:
    """A constraint as a grammar of llguidance.

    White space in JSON is fixed, since a model could go on with it for ever.
    """
    if constraint.kind == "tagged":
        return _tagged_grammar(parse_json(constraint.text), tokenizer)
    if constraint.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(constraint.text, overrides=JSON_OPTIONS)
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.text)
    texts = parse_json(constraint.text)
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(each, ensure_ascii=False) for each in texts))


def _tagged_grammar(tags: Sequence[Mapping[str, Any]], tokenizer: Any) -> str:
    """Free text, in which a trigger, or the special token that it is, begins one of the tags."""
    rules = []
    for index, tag in enumerate(tags):
        trigger, rest = tag["trigger"], tag["begin"][len(tag["trigger"]) :]
        schema = json.dumps({**tag["schema"], "x-guidance": JSON_OPTIONS})
        special = special_token_id(tokenizer, trigger)
        if special is None:
            rules.append(f"trigger_{index}[lazy]: TEXT {json.dumps(trigger)}")
        begin = f"trigger_{index}" if special is None else f"TEXT <[{special}]>"
        parts = [begin, *_literals(rest, tokenizer), f"%json {schema}", *_literals(tag["end"], tokenizer)]
        rules.append(f"tag_{index}: {' '.join(parts)}")
    choices = " | ".join(f"tag_{index}" for index in range(len(tags)))
    return "\n".join(["%llguidance {}", f"start: ({choices})* rest", "rest: TEXT", "TEXT: /(.|\\n)*/", *rules])


def _literals(text: str, tokenizer: Any) -> list[str]:
    """A text in the grammar's notation; special tokens in it cannot be spelled, and stand there by their ids."""
    found = []
    for part in filter(None, _SPECIAL_LOOKING.split(text)):
        special = special_token_id(tokenizer, part)
        found.append(json.dumps(part) if special is None else f"<[{special}]>")
    return found


def _clause(message: str) -> str:
    """A message in one line, without its full stop."""
    return " ".join(message.split()).rstrip(".")[:200] or "unknown reason"
