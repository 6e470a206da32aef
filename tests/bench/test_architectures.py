"""``foreword bench conformance --all``: tiny models of Transformers' architectures, their checks and the page."""

from __future__ import annotations

import copy
import json
import re
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from transformers import CONFIG_MAPPING

from bench.test_bench_command import bench
from foreword.bench.architectures import prefix_checks
from foreword.bench.architectures.conformance import run
from foreword.bench.architectures.models_page import models_page
from foreword.bench.architectures.plain_pair import PlainPair
from foreword.bench.architectures.tiny_config import tiny_configs
from foreword.bench.architectures.two_steps import two_steps
from foreword.bench.record import Record
from foreword.errors import BenchError
from tiny_models import tiny_model

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"


def first_config(model_type: str):
    return next(each for each in tiny_configs(CONFIG_MAPPING[model_type], "causal") if not isinstance(each, Exception))


@pytest.mark.parametrize(
    ("model_type", "kinds"),
    [
        ("jamba", {"full_attention", "linear_attention"}),
        ("qwen3_next", {"full_attention", "linear_attention"}),
        ("bamba", {"full_attention", "linear_attention"}),
        ("lfm2_moe", {"full_attention", "conv"}),
        ("gemma3_text", {"full_attention", "sliding_attention"}),
        ("zamba2", {"hybrid", "linear_attention"}),
    ],
)
def test_a_tiny_model_has_every_kind_of_layer(model_type, kinds):
    config = first_config(model_type)
    assert set(config.layer_types) == kinds
    assert config.num_hidden_layers == len(config.layer_types) < 13


def test_heads_of_multi_head_latent_attention_and_sizes_by_layer_stay_in_proportion():
    assert (first_config("deepseek_v3").qk_rope_head_dim, first_config("deepseek_v3").head_dim) == (8, 8)
    sizes = {each.head_dim for each in first_config("gemma4_text").per_layer_config}
    assert sizes == {16, 32}


def test_what_is_inside_a_configuration_is_tiny_too():
    config = first_config("qwen3_5")
    assert config.text_config.hidden_size == config.vision_config.hidden_size == 64


def test_the_command_writes_the_page(monkeypatch, capsys, tmp_path):
    where = ["--results", tmp_path / "results", "--page", tmp_path / "models.md", "--json"]
    types = ["--kinds", "causal,masked,seq2seq", "qwen3", "lfm2", "distilbert", "t5", "musicgen"]
    assert bench(monkeypatch, "conformance", "--all", *types, *where) == 0
    shares = {each["name"]: each["found"] for each in json.loads(capsys.readouterr().out)["limits"]}
    assert shares == {"causal/carried": 1.0, "masked/carried": 1.0, "seq2seq/carried": 1.0}
    page = (tmp_path / "models.md").read_text()
    assert "| Causal language models | 3 | 2 | 2 | 100.0% |" in page
    for name in ("`qwen3` (Qwen3ForCausalLM)", "`distilbert` (DistilBertForMaskedLM)", "`t5` (T5ForCon"):
        assert re.search(rf"\| {re.escape(name)}[^|]*\| [^|]+ \| ok \| ok \| ok \| ", page), name
    assert re.search(r"\| `lfm2` \(Lfm2ForCausalLM\) \| through Transformers' cache \| ok ", page)
    assert re.search(r"### Not built\n\n.*\n.*\n\| `musicgen` \(MusicgenForCausalLM\) \| \w+", page)
    # What is kept is not measured again, and gives the same page.
    assert bench(monkeypatch, "conformance", "--all", *types, *where) == 0
    assert (tmp_path / "models.md").read_text() == page


def test_the_page_says_why_and_numbers_what_went_wrong():
    settings = {"transformers": "5.23.0", "class": "GoneForCausalLM"}

    def record(name: str, found) -> Record:
        return Record("architectures", f"causal/{name}", settings, {}, found)

    checks = {"joined": {"difference": 2e-6}, "train": {"failed": "no gradient arrives in layer 0."}}
    page = models_page([
        record("b", {"refused": "GoneForCausalLM has no | attention."}),
        record("a", {"carried": "on ragged rows", "checks": checks}),
    ])  # fmt: skip
    assert "| Causal language models | 2 | 2 | 1 | 50.0% |" in page
    assert "| `a` (GoneForCausalLM) | on ragged rows | ok | **fails** (1) | - | - | 1e-05 |" in page
    assert "1. no gradient arrives in layer 0." in page
    assert "| `b` (GoneForCausalLM) | GoneForCausalLM has no \\| attention. |" in page


def test_other_weights_and_wrong_gradients_would_be_seen():
    stock = copy.deepcopy(tiny_model("llama").model)
    stock.set_attn_implementation("eager")
    pair = PlainPair(tiny_model("llama"), stock)
    assert run(prefix_checks.joined_text, pair)["difference"] < 1e-5
    stock.get_input_embeddings().weight.data.mul_(1.5)
    assert run(prefix_checks.joined_text, pair)["failed"].startswith("differs by")
    weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(BenchError, match=r"differs from finite differences of the loss by"):
        two_steps(lambda: (weight * weight.detach()).sum(), [weight], lambda: None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["conformance", "--all", "nothing"], "has no causal or masked or seq2seq model type 'nothing'."),
        (["conformance", "--all", "--kinds", "causal,other"], "no kind 'other' of model; choose from causal, masked,"),
        (["conformance", "--kinds", "causal"], "--kinds is for every architecture; add --all"),
        (["conformance", "llama"], "llama is for every architecture; add --all"),
        (["many", "--all"], "--all is for conformance, not for many; leave it out."),
    ],
)
def test_wrong_use_is_refused(monkeypatch, capsys, arguments, sentence):
    assert bench(monkeypatch, *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_the_committed_page_is_of_a_version_that_is_allowed():
    (wanted,) = (
        each for each in map(Requirement, requires("foreword") or ()) if each.name == "transformers" and not each.marker
    )
    version = re.search(r"Every architecture of Transformers (\S+), tried", PAGE.read_text(encoding="utf-8"))
    assert version is not None
    assert version[1] in wanted.specifier, "run: foreword bench conformance --all"
    assert "foreword bench conformance --all" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("readme", "share"), [("README.md", "{1} of {0}"), ("README.zh-CN.md", "{0} 个里有 {1} 个")])
def test_the_readme_gives_the_shares_of_the_page(readme, share):
    page, text = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/models.md", readme))
    found = re.findall(r"^\| [A-Z][^|]* \| \d+ \| (\d+) \| (\d+) \|", page, re.MULTILINE)
    assert len(found) == 3
    assert all(share.format(*each) in text for each in found), found
