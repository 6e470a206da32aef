"""``foreword sample``."""

from __future__ import annotations

import json

from cli.conftest import Run


def test_a_sample_is_printed_as_it_is(run: Run):
    result = run("sample", "reviews", "--language", "zh")
    assert result.status == 0
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert {row["label"] for row in rows} == {"positive", "negative"}


def test_a_sample_that_is_not_there_names_those_that_are(run: Run):
    result = run("sample", "reviewz")
    assert result.status == 2
    assert "use one of reviews, policy" in result.err
