"""A model whose own cache cannot stand in front of a request is refused by what is wrong with that cache."""

import pytest

from foreword.bench.architectures.architecture import Architecture
from foreword.errors import UnsupportedModel
from foreword.models.stock_cache import fault_of_stock_cache
from foreword.models.ways import wrap_model
from tiny_cached_models import tiny_cached_model
from tiny_models import byte_tokenizer, tiny_model

REASONS = {
    "blt": "Transformers' own forward that keeps what a text leaves fails in BltForCausalLM",
    "cpmant": "puts a prompt of its own, of 32 positions, in front of every text",
    "openai-gpt": "keeps nothing of a text that it has read",
    "prophetnet": "own cached forward differs from its forward of the joined text, by up to 0",
    "recurrent_gemma": r"keeps what a text leaves in its modules \(model.layers.0.temporal_block.conv1d_state\)",
    "xlnet": "keeps what a text leaves as mems",
    "xlstm": "in xLSTMCache, a cache of its own",
}


@pytest.mark.parametrize("model_type", REASONS)
def test_the_reason_is_what_the_model_itself_does(model_type):
    (found,) = (each for each in Architecture.all("causal") if each.model_type == model_type)
    with pytest.raises(UnsupportedModel, match=REASONS[model_type]):
        wrap_model(found.build(), byte_tokenizer(), name="tiny")


@pytest.mark.parametrize("lm", [tiny_cached_model("rwkv"), tiny_cached_model("bloom"), tiny_model("llama")])
def test_nothing_is_wrong_with_a_right_cache(lm):
    assert fault_of_stock_cache(lm.model) is None
