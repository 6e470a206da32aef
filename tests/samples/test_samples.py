"""The samples of the package: read by name, and fit for the commands that the documentation shows them with."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from foreword.errors import UsageError
from foreword.samples import SAMPLES, sample


@pytest.mark.parametrize(("language", "least"), [("en", 160), ("zh", 80)])
def test_reviews_are_balanced_and_different(language: str, least: int):
    rows = [json.loads(line) for line in sample("reviews", language).splitlines()]
    assert len(rows) >= least
    assert len({row["text"] for row in rows}) == len(rows)
    counts = Counter(row["label"] for row in rows)
    assert counts["positive"] == counts["negative"] == len(rows) // 2


def test_the_policy_is_a_long_prompt():
    policy = sample("policy")
    assert 750 <= len(policy.split()) <= 850
    assert policy.isascii()
    for heading in ("REFUNDS", "DELIVERY", "WARRANTY", "PRIVACY", "TONE", "ESCALATION"):
        assert heading in policy
    assert len(sample("policy", "zh")) > 1000


def test_every_user_opens_some_headlines_and_not_others():
    rows = [json.loads(line) for line in sample("users").splitlines()]
    opened: dict[str, set[str]] = {}
    for row in rows:
        opened.setdefault(row["user"], set()).add(row["opened"])
    assert len(opened) == 6
    assert set(map(frozenset, opened.values())) == {frozenset({"yes", "no"})}


@pytest.mark.parametrize(
    ("name", "language", "message"),
    [
        ("review", "en", "there is no sample 'review'; use one of reviews, policy"),
        ("reviews", "fr", "samples are in en and zh, not 'fr'"),
        ("users", "zh", "the sample users is one file"),
    ],
)
def test_a_wrong_name_or_language_is_refused(name: str, language: str, message: str):
    with pytest.raises(UsageError, match=message):
        sample(name, language)


def test_every_sample_is_there():
    for name in SAMPLES:
        assert sample(name)
