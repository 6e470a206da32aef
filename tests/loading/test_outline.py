"""`outline` finds by a model's files what `load_model` finds by running it."""

from __future__ import annotations

import json

import pytest

from foreword.errors import UnsupportedModel
from foreword.models import load_model
from foreword.models.outline import outline
from models import CAUSAL, save_tiny


@pytest.mark.parametrize("family", CAUSAL)
def test_it_is_the_identity_of_the_loaded_model(family, tmp_path):
    folder = save_tiny(family, tmp_path)
    lm, described = load_model(str(folder)), outline(str(folder))
    assert described.identity == lm.identity
    assert described.context == lm.context


def test_a_padding_token_is_no_matter(tmp_path):
    """With one, GPT-2 looks at its tokens, which are on no device."""
    folder = save_tiny("gpt2", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 257}))
    assert outline(str(folder)).identity == load_model(str(folder)).identity


def test_an_encoder_is_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match=r"is no causal model \(BertConfig\); serve it with --engine embedded"):
        outline(str(save_tiny("bert", tmp_path)))
