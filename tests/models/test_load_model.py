"""`load_model` on real folders: what it accepts, what it refuses by name, and what it says."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertModel,
    BloomConfig,
    FalconConfig,
    FalconH1Config,
    LlamaModel,
    MambaConfig,
    NemotronConfig,
    Phi3Config,
    Qwen2Config,
    StableLmConfig,
)

from foreword.core import Batch, SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import UnknownModel, UnsupportedModel, UsageError
from foreword.models import LanguageModel, load_model, probe, ragged_layers, ways
from foreword.prompts.lower import lower_tokens
from foreword.text import task_prompts
from tiny_models import CAUSAL, ENCODERS, SIZES, byte_tokenizer, save_tiny, tiny_config, tiny_model

EVEN = {**SIZES, "hidden_size": 64, "num_hidden_layers": 2}


def save(config, folder):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", CAUSAL + ENCODERS)
def test_a_saved_folder_is_the_model_that_was_saved(family, tmp_path):
    made, lm = tiny_model(family), load_model(str(save_tiny(family, tmp_path)))
    assert lm.identity.layers == made.identity.layers
    assert lm.causal == made.causal == (family in CAUSAL)
    assert lm.context == made.context
    ids = torch.arange(40, 52)
    batch, rows = Batch((12,), (None,), (None,), ids), torch.tensor([11, 2])
    torch.testing.assert_close(lm.logits(batch, rows), made.logits(batch, rows))


@pytest.mark.parametrize("family", CAUSAL + ENCODERS)
def test_logits_come_only_from_the_chosen_rows_in_their_order(family):
    lm = tiny_model(family)
    batch = Batch((9,), (None,), (None,), torch.arange(40, 49))
    every = lm.logits(batch, torch.arange(9))
    torch.testing.assert_close(lm.logits(batch, torch.tensor([5, 0, 8])), every[[5, 0, 8]])


def test_dtype_and_device(tmp_path):
    folder = str(save_tiny("llama", tmp_path))
    assert load_model(folder).dtype == torch.float32
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16
    assert load_model(folder, dtype="float16", device="cpu").device == torch.device("cpu")
    with pytest.raises(UsageError, match=r"unknown dtype 'int8'; choose auto"):
        load_model(folder, dtype="int8")
    with pytest.raises(UsageError, match=r"unknown device 'tpu'; choose auto"):
        load_model(folder, device="tpu")


def test_auto_dtype_is_the_checkpoints_own(tmp_path):
    folder = save_tiny("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    assert load_model(str(folder)).dtype == torch.bfloat16


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_tiny("llama", tmp_path / "mine")
    assert load_model("~/mine").identity.architecture == "LlamaForCausalLM"


@pytest.mark.parametrize("name", ["./nothing/here", "/no/such/folder", "a/b/c", "~/nothing", "missing.gguf"])
def test_unknown_paths(name):
    with pytest.raises(UnknownModel, match=re.escape(name.removeprefix("~/"))):
        load_model(name)


def test_unknown_hub_id(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnknownModel, match=r"model 'nobody/nothing' could not be loaded .* a Hub id or smollm2-135m"):
        load_model("nobody/nothing")


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(UnknownModel, match="could not be loaded"):
        load_model(str(tmp_path))


def test_a_truncated_checkpoint_is_refused_in_one_sentence(tmp_path):
    folder = save_tiny("llama", tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UnsupportedModel, match="cannot be used") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=300, hidden_size=64, n_layer=2, n_head=4),
        FalconConfig(vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=4),
        StableLmConfig(**EVEN, num_key_value_heads=4),
        NemotronConfig(**EVEN, num_key_value_heads=4),
        MambaConfig(vocab_size=300, hidden_size=48, num_hidden_layers=2, state_size=4),
    ],
    ids=lambda value: value.model_type,
)
def test_models_with_an_attention_of_their_own_are_carried_through_the_cache(config, tmp_path):
    lm = load_model(save(config, tmp_path))
    assert lm.carried == "through Transformers' cache"
    assert prefix_error(lm) < 1e-5


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    LlamaModel(tiny_config("llama")).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="which would be random"):
        load_model(str(tmp_path))


def test_a_sentence_encoder_has_hidden_states_and_no_words(tmp_path):
    model = BertModel(tiny_config("bert")).eval()
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    lm = load_model(str(tmp_path))
    ids = torch.tensor([7, 8, 9, 10])
    batch = Batch((4,), (None,), (None,), ids)
    with torch.no_grad():
        found = lm.hidden_states(batch, torch.tensor([0, 3]))
        expected = model(input_ids=ids[None]).last_hidden_state[0, [0, 3]]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(UnsupportedModel, match="has no output matrix, so it cannot score words; learn with a head"):
        lm.logits(batch, torch.tensor([3]))


def test_foreign_code_is_not_run_unless_asked(tmp_path):
    folder = save_tiny("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (folder / "mine.py").write_text(
        f"open({str(ran)!r}, 'w')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Mine(LlamaConfig):\n    model_type = 'mine'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Mine\n"
    )
    with pytest.raises(UnsupportedModel, match="pass --trust-remote-code"):
        load_model(str(folder))
    assert not ran.exists()
    assert load_model(str(folder), trust_remote_code=True).identity.architecture == "Model"
    assert ran.exists()


OWN_ATTENTION = """
import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
class Mine(LlamaConfig):
    model_type = 'mine'
class Attention(nn.Module):
    def forward(self, x):
        return torch.softmax(x @ x.transpose(-1, -2), -1) @ x
class Model(PreTrainedModel):
    config_class = Mine
    _supports_attention_backend = True
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.attention = Attention()
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()
    def get_input_embeddings(self):
        return self.embed
    def forward(self, input_ids=None, position_ids=None, use_cache=None, {takes}):
        return CausalLMOutputWithPast(logits=self.lm_head(self.attention(self.embed(input_ids))))
"""


@pytest.mark.parametrize("takes", ["**kwargs", "attention_mask=None"])
def test_attention_of_foreign_code_is_told_apart_from_a_missing_flag(tmp_path, takes):
    folder = save_tiny("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Model"]}))
    (folder / "mine.py").write_text(OWN_ATTENTION.format(takes=takes))
    weights = {"embed.weight": torch.randn(300, 48), "lm_head.weight": torch.randn(300, 48)}
    save_file({**weights, "lm_head.bias": torch.zeros(300)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"pass --trust-remote-code \(trust_remote_code=True in Python\)"):
        load_model(str(folder))
    with pytest.raises(UnsupportedModel, match="is run, but it computes its attention by itself and would") as refused:
        load_model(str(folder), trust_remote_code=True)
    assert "trust-remote-code" not in str(refused.value)
    (folder / "mine.py").write_text("import no_such_package_anywhere\n" + OWN_ATTENTION.format(takes=takes))
    with pytest.raises(UnsupportedModel, match=r"cannot be imported \(.*no_such_package_any.*install what it"):
        load_model(str(folder), trust_remote_code=True)


def state_space_model(folder) -> str:
    """Attention in every layer, and a state beside it that no keys and values carry."""
    config = FalconH1Config(
        **{**EVEN, "num_key_value_heads": 2},
        mamba_d_ssm=128,
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_chunk_size=8,
    )
    return save(config, folder)


def test_a_model_with_states_is_carried_through_the_cache(tmp_path):
    lm = load_model(state_space_model(tmp_path))
    assert lm.carried == "through Transformers' cache"
    assert prefix_error(lm) < 1e-5


def prefix_error(lm: LanguageModel) -> float:
    """Root mean square of the logits behind a static prefix, minus those of the joined text."""
    front, text = list(range(60, 80)), list(range(90, 100))
    prefix = lower_tokens(lm, front)
    batch = Batch((len(text),), (None,), (prefix,), torch.tensor(text))
    joined = Batch((len(front + text),), (None,), (None,), torch.tensor(front + text))
    found, expected = lm.logits(batch, torch.arange(10)), lm.logits(joined, torch.arange(20, 30))
    return float((found - expected).square().mean().sqrt())


def test_without_the_probe_wrong_answers_would_get_through(tmp_path, monkeypatch):
    """The comparison with Transformers stops what no list of names would, and what it stops is wrong."""
    folder = state_space_model(tmp_path)
    monkeypatch.setattr(ragged_layers, "_check_kind", lambda *_: None)
    monkeypatch.setattr(ways, "_ways", lambda model: (ways._on_ragged_rows,))
    with pytest.raises(UnsupportedModel) as refused:
        load_model(folder)
    if "does not hand extra keyword arguments" in str(refused.value):
        pytest.skip("in this release of Transformers another guard stops Falcon-H1 first")
    assert "does not give the same logits" in str(refused.value)
    monkeypatch.setattr(probe, "TOLERANCE", float("inf"))
    assert prefix_error(load_model(folder)) > 0.1
    assert prefix_error(tiny_model("llama")) < 1e-5


def test_windows_are_compared_with_the_masks(tmp_path, monkeypatch):
    folder = str(save_tiny("mistral", tmp_path))
    monkeypatch.setattr(ragged_layers, "_window", lambda mask: None)
    monkeypatch.setattr(ways, "_ways", lambda model: (ways._on_ragged_rows,))
    with pytest.raises(UnsupportedModel, match=r"asks for attention windows \[6, 6, 6\]"):
        load_model(folder)


@pytest.mark.parametrize("used", [True, False])
def test_qwen2_windows_count_only_where_they_are_used(used, tmp_path):
    config = Qwen2Config(**EVEN, num_key_value_heads=2, use_sliding_window=used, sliding_window=6, max_window_layers=1)
    lm = load_model(save(config, tmp_path))
    assert lm.model.config.layer_types == ["full_attention", "sliding_attention" if used else "full_attention"]
    assert prefix_error(lm) < 1e-5


def test_longrope_is_used_only_where_no_token_depends_on_the_batch(tmp_path):
    """One request beyond the original length would change the frequencies of all others."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    config = Phi3Config(
        **EVEN,
        num_key_value_heads=2,
        pad_token_id=0,
        original_max_position_embeddings=64,
        rope_parameters={**rope, "original_max_position_embeddings": 64},
    )
    assert load_model(save(config, tmp_path)).context == 64


def test_the_context_of_roberta_leaves_out_the_positions_before_the_first(tmp_path):
    lm = load_model(str(save_tiny("roberta", tmp_path)))
    assert (lm.first_position, lm.context) == (2, AutoConfig.from_pretrained(tmp_path).max_position_embeddings - 2)


def test_the_built_in_model_knows_the_capital_of_france():
    lm = load_model()
    assert lm.name == "smollm2-135m"
    with Engine(lm) as engine:
        prompt = task_prompts.from_text(lm.tokenizer, None, "The capital of France is")
        (chunks,) = engine.generate([Request.from_prompt(prompt, SamplingParams(max_tokens=4))])
    assert "".join(chunk.text for chunk in chunks).startswith(" Paris")
