"""Constraints that are made to cost: refused with a sentence or served, within bounds, and no neighbour waits."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from llguidance import LLMatcher

from engine.reference import make_request, text_of, tokens_of
from engine.test_engine import manual_engine, run_until_idle
from foreword.core import Constraint
from foreword.engine import grammar as grammars
from foreword.engine.grammar import GrammarCompiler
from foreword.engine.grammar_trial import GrammarTrial
from foreword.errors import RequestError, UsageError
from tiny_models import byte_tokenizer

BYTES = byte_tokenizer()


def make_compiler() -> GrammarCompiler:
    return GrammarCompiler(BYTES, len(BYTES), [BYTES.eos_token_id])


def deep(levels: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def combined(count: int) -> dict:
    part = [{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(4)]} for i in range(count)]
    return {"type": "object", "allOf": part}


PATTERNS = {"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(40)]}
DISJOINT = {"type": "object", "patternProperties": {f"^(x|y)+{i}$": {"type": "integer"} for i in range(400)}}
HOSTILE = {
    "endless": lambda: Constraint.json_schema({"$ref": "#"}),
    "mutual": lambda: Constraint.json_schema(
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}} | {"$ref": "#/$defs/a"}
    ),
    "itself and more": lambda: Constraint.json_schema({"allOf": [{"$ref": "#"}, {"type": "string"}]}),
    "deep": lambda: Constraint.json_schema(deep(120)),
    "deep text": lambda: Constraint.json_schema(json.dumps(deep(120))),
    "bottomless text": lambda: Constraint.json_schema("[" * 100_000),
    "combinations": lambda: Constraint.json_schema(combined(8)),
    "all of many patterns": lambda: Constraint.json_schema(PATTERNS),
    "many patterns of names": lambda: Constraint.json_schema(DISJOINT),
    "long constant": lambda: Constraint.json_schema({"const": "x" * 100_000}),
    "many constants": lambda: Constraint.json_schema({"prefixItems": [{"const": "x" * 4000} for _ in range(40)]}),
    "long pattern": lambda: Constraint.json_schema({"properties": {"a": {"type": "string", "pattern": "x" * 10_000}}}),
    "long name": lambda: Constraint.json_schema({"properties": {"x" * 10_000: {}}}),
    "long schema": lambda: Constraint.json_schema({"enum": [f"w{i}" for i in range(40_000)]}),
    "long regex": lambda: Constraint.regex("a" * 1_000_000),
    "deep regex": lambda: Constraint.regex("(" * 4000 + "a" + ")" * 4000),
    "long choice": lambda: Constraint.choice(["a" * 10_000]),
    "half a character": lambda: Constraint.regex("\ud800"),
    "half a character to choose": lambda: Constraint.choice(["a", "\udfff"]),
    "half a character in a schema": lambda: Constraint.json_schema({"const": "\ud800"}),
    "not a number": lambda: Constraint.json_schema({"minimum": float("nan")}),
    "many digits": lambda: Constraint.json_schema({"minimum": 10**400}),
    "wrong type": lambda: Constraint.json_schema({"properties": 3}),
    "no JSON": lambda: Constraint.json_schema({"a": {1}}),
}


@pytest.fixture(scope="module")
def compiler():
    compiler = make_compiler()
    yield compiler
    compiler.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_what_costs_too_much_is_the_askers_error(name, compiler):
    """By the processor time of this process: the child's is bounded by the system."""
    started = time.process_time()
    with pytest.raises(UsageError) as caught:
        compiler.compile(HOSTILE[name]())
    assert time.process_time() - started < 1.5
    sentence = str(caught.value)
    assert len(sentence) < 400
    assert "\n" not in sentence
    assert "backtrace" not in sentence
    assert caught.value.http_status == 400


SERVED = {
    "2,001 choices": Constraint.choice([f"w{i}" for i in range(2001)]),
    "40,000 choices": Constraint.choice([f"w{i}" for i in range(40_000)]),
    "40 objects in one another": Constraint.json_schema(deep(40)),
    "counters": Constraint.regex("(a{1,1000}){1,1000}"),
    "states without end": Constraint.regex(".*a.{60}"),
    "unions": Constraint.regex("|".join(f".*w{i}.*" for i in range(300))),
    "many items": Constraint.json_schema({"type": "array", "items": {"type": "string"}, "minItems": 10**9}),
    "many characters": Constraint.json_schema({"type": "string", "minLength": 10**9}),
    "1,000 optional properties": Constraint.json_schema(
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}}
    ),
    "references to itself": Constraint.json_schema(
        {"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"type": "null"}]}
    ),
}


@pytest.mark.parametrize("name", SERVED)
def test_what_looks_large_is_served(name, compiler):
    matcher, row, generator = compiler.compile(SERVED[name]), np.zeros(len(BYTES), np.float32), np.random.default_rng(0)
    for _ in range(200):
        allowed = np.flatnonzero(np.isfinite(matcher.mask(row)))
        assert matcher.error is None
        matcher.accept_token(int(generator.choice(allowed)))
        assert matcher.error is None
        if matcher.complete:
            break


def test_every_choice_can_be_reached_also_one_that_begins_another(compiler):
    for choice in ("a", "ab", "b"):
        matcher = compiler.compile(Constraint.choice(["a", "ab", "b"]))
        row = np.zeros(len(BYTES), np.float32)
        for token in [*BYTES.encode(choice), BYTES.eos_token_id]:
            if matcher.complete:
                break
            assert np.isfinite(matcher.mask(row)[token])
            matcher.accept_token(token)
        assert matcher.error is None


def test_equal_constraints_are_compiled_once_and_few_are_kept(monkeypatch):
    compiled, began = [], threading.Event()

    def slow_error(self: GrammarTrial, grammar: str) -> str:
        compiled.append(grammar)
        began.wait(5)
        return ""

    monkeypatch.setattr(GrammarTrial, "error", slow_error)
    compiler = make_compiler()
    with ThreadPoolExecutor(8) as threads:
        matchers = [threads.submit(compiler.compile, Constraint.regex("a+b")) for _ in range(8)]
        began.set()
        assert len({id(each.result()) for each in matchers}) == 8
    assert len(compiled) == 1
    for i in range(grammars.MAX_CACHED):
        compiler.compile(Constraint.regex(f"a{{{i + 1}}}"))
    compiler.compile(Constraint.regex("a+b"))
    assert len(compiled) == grammars.MAX_CACHED + 2
    monkeypatch.setattr(grammars, "MAX_CACHED_BYTES", 10)
    for _ in range(2):
        compiler.compile(Constraint.regex("a" * 20))
        compiler.compile(Constraint.regex("b" * 20))
    assert len(compiled) == grammars.MAX_CACHED + 6


def test_a_grammar_that_ends_the_trial_is_refused_and_the_next_one_tried():
    trial = GrammarTrial()
    try:
        patterns = LLMatcher.grammar_from_json_schema(json.dumps(PATTERNS))
        assert trial.error(patterns) == "it grows too large"
        assert trial.error(LLMatcher.grammar_from_regex("a+")) == ""
        assert "invalid regex" in trial.error(LLMatcher.grammar_from_regex("(a"))
    finally:
        trial.close()


def test_a_constraint_that_breaks_in_an_answer_is_the_askers_error_and_the_neighbours_go_on(monkeypatch):
    engine = manual_engine("llama")
    free = engine.submit(make_request(6, 40))
    run_until_idle(engine)
    alone = tokens_of(free)
    monkeypatch.setattr(grammars, "FREE_SECONDS", 1e-9)
    monkeypatch.setattr(grammars, "SECONDS_A_TOKEN", 1e-9)
    monkeypatch.setattr(grammars, "_first_error", lambda matcher: "")
    free = engine.submit(make_request(6, 40))
    bound = engine.submit(make_request(5, 1, ignore_eos=False, max_tokens=20, constraint=Constraint.regex("[ab]{9,}")))
    run_until_idle(engine)
    with pytest.raises(RequestError, match=r"takes more than .* ms for a token; simplify it"):
        text_of(list(bound))
    assert tokens_of(free) == alone
    assert engine.statistics()["failed"] == 1
