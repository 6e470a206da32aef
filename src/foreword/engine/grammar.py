"""Constrained decoding by llguidance: `GrammarCompiler` compiles a constraint, `GrammarMatcher` follows one answer."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from copy import copy
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from foreword.core import Constraint
from foreword.core.json_reader import parse_json
from foreword.engine.grammar_trial import TOO_LARGE, GrammarTrial
from foreword.errors import RequestError
from foreword.text.detokenize import special_token_id

JSON_OPTIONS: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}
"""Overrides what a schema says of itself; lenient would ignore unknown keywords."""

LIMITS = LLParserLimits(
    max_items_in_row=10_000,  # an object of 2,000 optional properties needs 8,000
    step_lexer_fuel=100_000,  # 7 ms
    max_lexer_states=20_000,  # 40 MB
    max_grammar_size=50_000,  # symbols; 128 tools of twelve choices each have 30,000
    verbose_errors=False,
)
"""Of one grammar, and of every token that is chosen by it."""

FREE_SECONDS, SECONDS_A_TOKEN = 0.25, 0.002
"""Processor time that the masks of one answer may take: some to begin with, which the lexer needs, and so much more
for each token. All answers of a step wait for each other's masks."""

MAX_CACHED, MAX_CACHED_BYTES = 64, 4 << 20
"""Compiled constraints that are kept, and the bytes of their texts."""

_SPECIAL_LOOKING = re.compile(r"(\[[A-Z_]+\]|<[^<>\s]+>)")


class GrammarMatcher:
    """State of one answer in its grammar.

    Attributes:
        error: a sentence, once the matcher failed; ``None`` before.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._seconds_left = FREE_SECONDS
        self.error: str | None = None

    def mask(self, logits: np.ndarray) -> np.ndarray:
        """``logits [vocab]`` with minus infinity for every token that the grammar does not allow next."""
        started = time.thread_time()
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check(started)
        flags = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        masked = np.full_like(logits, -np.inf)
        masked[: len(flags)][flags] = logits[: len(flags)][flags]
        return masked

    def accept_token(self, token: int) -> None:
        """Advance by a token of the answer."""
        started = time.thread_time()
        self._matcher.consume_token(token)
        self._seconds_left += SECONDS_A_TOKEN
        self._check(started)

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return self._matcher.is_stopped() and self.error is None

    def _check(self, started: float) -> None:
        self._seconds_left -= time.thread_time() - started
        if self._matcher.is_error():
            self.error = f"the constraint of this request broke off: {_clause(self._matcher.get_error())}; simplify it."
        elif self._seconds_left < 0:
            allowed = f"{SECONDS_A_TOKEN * 1000:g} ms"
            self.error = f"the constraint of this request takes more than {allowed} for a token; simplify it."


class GrammarCompiler:
    """Compiles the constraints of one model's requests, in the thread that submits them.

    Threads that ask for an equal constraint wait for the first one's. llguidance lets other threads run meanwhile.

    Args:
        tokenizer: with a ``backend_tokenizer`` of the library tokenizers, as fast ones of Transformers have it; it is
            converted when the first constraint comes.
        vocab_size: how many logits the model gives.
        eos_token_ids: tokens that end a text.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._tokenizer, self._vocab_size, self._eos_token_ids = tokenizer, vocab_size, sorted(eos_token_ids)
        self._lock = threading.Lock()
        self._tokenizer_lock = threading.Lock()
        self._converted_tokenizer: Any = None
        self._trial = GrammarTrial()
        self._compiled: OrderedDict[Constraint, Future[LLMatcher]] = OrderedDict()  # the last used at the end

    def compile(self, constraint: Constraint) -> GrammarMatcher:
        """A matcher at the beginning of the constraint's grammar.

        Raises RequestError for a constraint, or a tokenizer, that cannot be compiled.
        """
        with self._lock:
            found = self._compiled.get(constraint)
            if mine := found is None:
                found = self._compiled[constraint] = Future()
            self._compiled.move_to_end(constraint)
            self._evict()
        if mine:
            try:
                found.set_result(self._compile(constraint))
            except BaseException as error:
                with self._lock:
                    self._compiled.pop(constraint, None)  # what failed is not kept
                found.set_exception(error)
                raise
        return GrammarMatcher(found.result().deep_copy())

    def close(self) -> None:
        """End the child process; another constraint would start it again."""
        self._trial.close()

    def _evict(self) -> None:
        size = sum(len(constraint.text) for constraint in self._compiled)
        while len(self._compiled) > 1 and (len(self._compiled) > MAX_CACHED or size > MAX_CACHED_BYTES):
            size -= len(self._compiled.popitem(last=False)[0].text)

    def _compile(self, constraint: Constraint) -> LLMatcher:
        tokenizer, grammar = self._ll_tokenizer(), ""
        try:
            grammar = _grammar(constraint, self._tokenizer)
            message = self._trial.error(grammar)
        except ValueError as error:  # of a schema that is no JSON to it, or of half a character
            message = str(error)
        if message.startswith("WARNING"):
            # A keyword that the compiler does not know would be accepted and ignored.
            raise RequestError(
                f"the constraint ({constraint.kind}) has parts that are not enforced: {_clause(message)}; mend it."
            )
        if not message:
            matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
            if not (message := _first_error(matcher)):
                return matcher
        raise RequestError(f"the constraint ({constraint.kind}) cannot be compiled: {_clause(message)}; mend it.")

    def _ll_tokenizer(self) -> Any:
        with self._tokenizer_lock:
            if self._converted_tokenizer is None:
                self._converted_tokenizer = self._convert_tokenizer()
        return self._converted_tokenizer

    def _convert_tokenizer(self) -> Any:
        if not self._eos_token_ids:
            raise RequestError("the model has no end-of-text token, which a constraint needs; leave it out.")
        try:
            backend = copy(self._tokenizer.backend_tokenizer)
            backend.no_padding()
            backend.no_truncation()
            # Tokens without a logit are known to the grammar, and never chosen (`GrammarMatcher.mask`).
            known = max(self._vocab_size, backend.get_vocab_size())
            return LLTokenizer(backend.to_str(), n_vocab=known, eos_token=self._eos_token_ids)
        except Exception as error:  # the library tells why in its own kinds of errors
            raise RequestError(
                f"the tokenizer of this model takes no constraints: {_clause(str(error))}; leave them out."
            ) from error


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
    # One terminal, which the lexer reads as a tree, where as many rules would be as many items of the parser.
    quoted = " | ".join(json.dumps(each, ensure_ascii=False) for each in texts)
    return LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {quoted}")


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


def _first_error(matcher: LLMatcher) -> str:
    """Why no answer can begin, or only by much work; empty if one can."""
    if matcher.is_error():
        return matcher.get_error()
    started, first = time.thread_time(), matcher.deep_copy()
    allowed = any(first.compute_bitmask())
    if first.is_error():
        return first.get_error()
    if time.thread_time() - started > FREE_SECONDS:
        return TOO_LARGE
    return "" if allowed else "no text fits it"


def _clause(message: str) -> str:
    """A message of llguidance in one line, without its full stop and what it tells of the library's inside."""
    if message.startswith("panic"):
        return TOO_LARGE
    if message.startswith("NoExtension"):
        return "no text fits it"
    message = message.split("<state>")[0].split("<non-verbose/>")[0]
    return " ".join(message.split()).rstrip(".")[:200] or "unknown reason"
