"""The ways in which a model carries prefixes: which one is kept, how it is said, and the reason of a refusal."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BloomConfig,
    FNetConfig,
    LlamaConfig,
    MPNetConfig,
    Qwen3_5TextConfig,
)

from foreword import attention
from foreword.bench.architectures.architecture import Architecture
from foreword.cli.doctor.model import check_model, facts
from foreword.errors import UnsupportedModel
from foreword.models import LanguageModel, ways
from foreword.models.load import load_model
from foreword.models.ways import wrap_model
from tiny_encoder_decoders import tiny_encoder_decoder
from tiny_models import GROUPED, SIZES, byte_tokenizer, tiny_model

HYBRID = Qwen3_5TextConfig(
    **{**GROUPED, "num_hidden_layers": 4},
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
)
MADE = {
    "qwen3_5": (AutoModelForCausalLM, HYBRID),
    "bloom": (AutoModelForCausalLM, BloomConfig(vocab_size=300, hidden_size=48, n_layer=2, n_head=4)),
    "mpnet": (AutoModelForMaskedLM, MPNetConfig(**{**SIZES, "num_hidden_layers": 2})),
}
STATES = "a prefix with states is never cut, and cannot stand behind another"
PADDED = "batches are padded, and wait for their longest row"


def random_model(auto, config):
    attention.register()
    torch.manual_seed(0)
    model = auto.from_config(config, attn_implementation=attention.ATTN_IMPLEMENTATION)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
    return model.eval().requires_grad_(False)


def made(family: str) -> LanguageModel:
    return wrap_model(random_model(*MADE[family]), byte_tokenizer(), name=f"tiny-{family}")


@pytest.mark.parametrize(
    ("family", "carries", "limits"),
    [
        ("qwen3_5", "through Transformers' cache: 1 layer attends, 3 keep states", (STATES, PADDED)),
        ("bloom", "through Transformers' cache: 2 layers attend", (PADDED,)),
        (
            "mpnet",
            "through placeholder tokens: 2 layers attend",
            ("every row runs as many tokens more as its prefix has positions",),
        ),
    ],
)
def test_doctor_and_overview_say_the_way_and_what_it_cannot_do(family, carries, limits):
    lm = made(family)
    assert (lm.carries, lm.limits) == (carries, limits)
    assert carries in repr(lm)
    said = next(finding for finding in check_model(lm) if finding.what == "prefixes")
    assert said.found == "; ".join([f"carried {carries}", *limits])
    assert (facts(lm)["carried"], facts(lm)["limits"]) == (lm.carried, list(limits))


def test_the_fastest_way_is_kept_and_an_encoder_decoder_is_said_to_be_one():
    assert tiny_model("llama").carries == "on ragged rows: 3 layers attend"
    assert tiny_model("llama").limits == ()
    assert facts(tiny_encoder_decoder("t5"))["kind"] == "encoder-decoder"


def test_a_refusal_has_the_reason_of_the_last_way():
    config = FNetConfig(vocab_size=300, hidden_size=48, intermediate_size=64, num_hidden_layers=2)
    model = AutoModelForMaskedLM.from_config(config).eval()
    with pytest.raises(UnsupportedModel, match="FNetForMaskedLM has no attention: no module of it projects"):
        wrap_model(model, byte_tokenizer(), name="tiny")


def test_nan_ends_the_search_for_a_way(monkeypatch):
    tried = []
    all_ways = ways._ways
    monkeypatch.setattr(ways, "_ways", lambda model: (tried.append(way) or way for way in all_ways(model)))
    model = random_model(AutoModelForCausalLM, LlamaConfig(**GROUPED))
    model.model.norm.weight[0] = float("nan")
    with pytest.raises(UnsupportedModel, match="NaN or infinity"):
        wrap_model(model, byte_tokenizer(), name="tiny")
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("kind", "model_type", "carried"),
    [("causal", "emu3", "on ragged rows"), ("masked", "xlm", "through placeholder tokens")],
)
def test_a_text_side_in_no_list_and_a_model_that_looks_at_padding_are_carried(tmp_path, kind, model_type, carried):
    (found,) = (each for each in Architecture.all(kind) if each.model_type == model_type)
    found.build().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert load_model(str(tmp_path), dtype="float32", device="cpu", progress=lambda _: None).carried == carried


def test_a_model_without_a_table_of_embeddings_is_refused(tmp_path):
    (found,) = (each for each in Architecture.all("masked") if each.model_type == "perceiver")
    with pytest.raises(UnsupportedModel, match="does not read its tokens from a table of embeddings"):
        wrap_model(found.build(), byte_tokenizer(), name="perceiver")
