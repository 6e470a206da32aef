"""The pooling that a model's sentence-transformers configuration names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foreword.models import load_model
from foreword.models.pooling import model_pooling
from tiny_models import save_tiny

TYPE = "sentence_transformers.models"


def write_modules(folder: Path, config: dict[str, Any], *further: str) -> None:
    kinds = ("Transformer", "Pooling", *further)
    modules = [
        {"idx": index, "name": str(index), "path": f"{index}_{kind}" if index else "", "type": f"{TYPE}.{kind}"}
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


def flags(**chosen: bool) -> dict[str, Any]:
    off = dict.fromkeys(("cls_token", "mean_tokens", "max_tokens", "lasttoken"), False)
    return {"word_embedding_dimension": 48, **{f"pooling_mode_{k}": v for k, v in {**off, **chosen}.items()}}


@pytest.mark.parametrize(
    ("config", "further", "expected"),
    [
        (flags(cls_token=True), (), "cls"),
        (flags(mean_tokens=True), ("Normalize",), "mean"),
        (flags(lasttoken=True), (), "last"),
        ({"pooling_mode": "cls"}, (), "cls"),
        (flags(max_tokens=True), (), None),
        (flags(cls_token=True, mean_tokens=True), (), None),
        (flags(mean_tokens=True), ("Dense",), None),
    ],
)
def test_the_pooling_is_the_configured_one(
    tmp_path: Path, config: dict[str, Any], further: tuple[str, ...], expected: str | None
) -> None:
    write_modules(tmp_path, config, *further)
    assert model_pooling(str(tmp_path), causal=False) == expected


def test_without_a_configuration_it_follows_from_the_kind_of_model(tmp_path: Path) -> None:
    assert model_pooling(str(tmp_path), causal=True) == "last"
    assert model_pooling(str(tmp_path), causal=False) == "mean"


def test_a_loaded_model_knows_its_pooling(tmp_path: Path) -> None:
    folder = save_tiny("bert", tmp_path)
    write_modules(folder, flags(cls_token=True))
    assert load_model(str(folder), progress=lambda line: None).pooling == "cls"
