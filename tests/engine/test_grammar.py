"""Constrained answers match, whatever the model would say, and disturb no neighbour."""

from __future__ import annotations

import json
import re

import pytest

from engine.reference import make_request, text_of, tokens_of
from engine.test_engine import manual_engine, run_until_idle
from foreword.core import Constraint, SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import RequestError, UsageError
from foreword.models import load_model

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}, "mood": {"enum": ["好", "bad"]}},
    "required": ["age", "mood"],
    "additionalProperties": False,
}
TEXTS = ["yes", "不", 'a "quoted"\n line', "🎉"]


def fits_schema(text: str) -> bool:
    found = json.loads(text)
    return found.keys() == {"age", "mood"} and 0 <= found["age"] <= 99 and found["mood"] in ("好", "bad")


FORMS = [
    (Constraint.json_schema(SCHEMA), fits_schema),
    (Constraint.regex("[a-c]{2,6}(好|🎉)"), lambda text: re.fullmatch("[a-c]{2,6}(好|🎉)", text)),
    (Constraint.choice(TEXTS), lambda text: text in TEXTS),
]


@pytest.mark.parametrize(("constraint", "fits"), FORMS, ids=["json_schema", "regex", "choice"])
def test_every_answer_has_its_form_and_the_neighbours_stay_as_they_are(constraint, fits):
    engine = manual_engine("llama")
    free = [engine.submit(make_request(6, 40)), engine.submit(make_request(6, 41, temperature=1.0, seed=3))]
    run_until_idle(engine)
    alone = [tokens_of(stream) for stream in free]
    options = {"ignore_eos": False, "max_tokens": 90, "constraint": constraint}
    bound = [
        engine.submit(make_request(5, seed, temperature=1.5 * (seed > 0), seed=seed, **options)) for seed in range(6)
    ]
    free = [engine.submit(make_request(6, 40)), engine.submit(make_request(6, 41, temperature=1.0, seed=3))]
    run_until_idle(engine)
    for stream in bound:
        chunks = list(stream)
        assert chunks[-1].finish_reason == "stop"
        assert fits(text_of(chunks)), text_of(chunks)
    assert [tokens_of(stream) for stream in free] == alone


def test_the_built_in_model_follows_a_schema():
    lm = load_model("smollm2-135m")
    ids = tuple(lm.tokenizer.encode("A person as JSON:"))
    with Engine(lm, cache_bytes=1 << 26) as engine:
        for constraint, fits in FORMS:
            asked = [
                SamplingParams(max_tokens=60, temperature=1.5 * (seed > 0), seed=seed, constraint=constraint)
                for seed in range(3)
            ]
            for chunks in engine.generate([Request(ids, sampling=params) for params in asked]):
                assert chunks[-1].finish_reason == "stop", chunks[-1]
                assert fits(text_of(chunks)), text_of(chunks)


@pytest.mark.parametrize(
    ("constraint", "sentence"),
    [
        (Constraint.regex("(a"), r"constraint \(regex\) cannot be compiled"),
        (Constraint.json_schema({"type": "nope"}), r"constraint \(json_schema\) cannot be compiled"),
        (Constraint.json_schema({"not": {"type": "string"}}), "Unimplemented keys"),
        (Constraint.json_schema({"not": {}, "x-guidance": {"lenient": True}}), "Unimplemented keys"),
    ],
)
def test_unenforceable_constraints_are_refused(constraint, sentence):
    engine = manual_engine("llama")
    with pytest.raises(RequestError, match=sentence):
        engine.submit(make_request(3, ignore_eos=False, constraint=constraint))


def test_wrong_constraints_are_named():
    for make in (lambda: Constraint.json_schema("{"), lambda: Constraint.regex(""), lambda: Constraint.choice([])):
        with pytest.raises(UsageError):
            make()
    with pytest.raises(UsageError, match="ignore_eos asks for more"):
        SamplingParams(constraint=Constraint.regex("a"), ignore_eos=True)
