"""A model described without its weights is the model that is loaded."""

from __future__ import annotations

import json

import pytest

from foreword.errors import UnknownModel, UnsupportedModel
from foreword.models import load_model
from foreword.models.model_info import model_info
from tiny_models import CAUSAL, save_tiny


@pytest.mark.parametrize("family", CAUSAL)
def test_identity_and_context_are_those_of_the_loaded_model(family, tmp_path):
    folder = str(save_tiny(family, tmp_path / "model"))
    described, loaded = model_info(folder), load_model(folder)
    assert described.identity == loaded.identity
    assert described.context == loaded.context
    assert described.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    if described.first_linear is not None:
        name, shape = described.first_linear
        assert tuple(loaded.model.get_submodule(name).weight.shape) == shape


def test_a_padding_token_is_no_matter(tmp_path):
    """With one, GPT-2 looks at its tokens, which are on no device."""
    folder = save_tiny("gpt2", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": 257}))
    assert model_info(str(folder)).identity == load_model(str(folder)).identity


def test_the_built_in_model():
    described, loaded = model_info(), load_model()
    assert (described.identity, described.context) == (loaded.identity, loaded.context)


def test_other_models_are_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match="no causal model"):
        model_info(str(save_tiny("bert", tmp_path / "bert")))
    with pytest.raises(UnknownModel):
        model_info(str(tmp_path / "nothing"))
