"""The built-in model and a real article: a few steps close two thirds of the gap."""

from __future__ import annotations

import json

import pytest

from foreword.models import load_model
from foreword.training.distillation.distill import distill
from foreword.training.distillation.recipe import DistilRecipe
from test_built_in_model import DATA

ARTICLES = DATA / "xquad_en" / "documents.jsonl"


@pytest.mark.slow
@pytest.mark.skipif(not ARTICLES.is_file(), reason="needs the data sets in ../shared/data")
def test_a_real_article(tmp_path):
    rows = map(json.loads, ARTICLES.read_text(encoding="utf-8").splitlines())
    text = next(row["text"] for row in rows if row["doc_id"] == "Amazon_rainforest")
    lm = load_model("smollm2-135m", progress=lambda line: None)
    lines: list[str] = []
    settings = DistilRecipe(
        conversations=96, held=24, answer_tokens=48, max_steps=60, init="attention", out=str(tmp_path / "run")
    )
    result = distill(lm, text, settings, say=lines.append)
    assert result.task.kind == "system"
    assert result.report.gap_closed > 0.65
    assert result.report.agreement["distilled"] > result.report.agreement["none"] + 0.1
    assert result.report.bytes_ratio > 14
    assert result.report.decode["distilled"] > result.report.decode["full"]
