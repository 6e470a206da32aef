"""Layers that accelerate places: its hooks hand the forward context on, and what cannot be spread is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import dispatch_model
from transformers import BloomConfig

from foreword.core import Batch
from foreword.errors import SettingError, UnsupportedModel, UsageError
from foreword.models import load_model
from foreword.models.device_map import check_placement
from foreword.models.gradient_probe import check_gradients
from foreword.models.ways import wrap_model
from foreword.training.train import train
from models.test_load_model import save
from tiny_models import save_tiny, tiny_model
from training.small_data import recipe


def test_accelerates_hooks_hand_the_forward_context_on():
    base = tiny_model("llama")
    places = ("embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb")
    parts = {f"model.{name}": "cpu" for name in places} | {"lm_head": "cpu"}
    lm = wrap_model(
        dispatch_model(copy.deepcopy(base.model), parts, main_device="cpu", force_hooks=True),
        base.tokenizer,
        name="spread",
    )
    assert hasattr(lm.model.model.layers[0], "_hf_hook")
    batch, rows = Batch((6,), (None,), (None,), torch.arange(40, 46)), torch.tensor([5])
    torch.testing.assert_close(lm.logits(batch, rows), base.logits(batch, rows))
    check_gradients(lm)


def test_a_map_of_one_device_learns(tmp_path):
    lm = load_model(str(save_tiny("llama", tmp_path / "model")), device_map={"": "cpu"})
    assert train(lm, recipe(tmp_path, max_steps=40)).metrics["accuracy"] > 0.9


def test_what_cannot_be_spread_is_refused(tmp_path, monkeypatch):
    folder = str(save_tiny("llama", tmp_path / "model"))
    with pytest.raises(SettingError, match="unknown device map 'all'; choose auto, balanced, sequential"):
        load_model(folder, device_map="all")
    with pytest.raises(UsageError, match="chooses the devices of all layers; leave --device out"):
        load_model(folder, device_map="auto", device="cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="every process of a distributed run has a GPU of its own"):
        load_model(folder, device_map="auto")
    monkeypatch.delenv("WORLD_SIZE")
    bloom = save(BloomConfig(vocab_size=300, hidden_size=64, n_layer=2, n_head=4), tmp_path / "bloom")
    with pytest.raises(UnsupportedModel, match=r"carried through Transformers' cache: .* which takes one device"):
        load_model(bloom, device_map={"": "cpu"})


def test_a_model_that_does_not_fit_is_refused():
    model = copy.copy(tiny_model("llama").model)
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu"}
    with pytest.raises(UnsupportedModel, match="big does not fit on the GPUs"):
        check_placement(model, "big")
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    check_placement(model, "big")
