"""Exported folders give our logits in real PEFT, and come back as what they were."""

from __future__ import annotations

import json
from dataclasses import replace

import peft
import pytest
import torch

from foreword.core import Adapter, KVPrefix, LayerShape, LowRank, Task
from foreword.errors import ModelMismatch, UsageError
from foreword.interop.export import export_peft
from foreword.interop.peft import base_model, import_peft, read_peft
from foreword.prompts.lower import empty_prefix, lower, lower_tokens
from foreword.prompts.registry import get_method
from foreword.prompts.static import static_task
from foreword.text.task_prompts import from_text
from interop.conftest import ROWS, assert_same, by_peft, by_task, random_prefix
from interop.families import family

FAMILIES = ("llama", "qwen3", "mistral", "gemma3", "gpt2", "gpt_neox", "opt", "phi3", "glm", "bert", "roberta")


def in_peft(made, folder):
    return peft.PeftModel.from_pretrained(made.fresh(), folder).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_learned_prefix_gives_the_same_logits_in_peft(base, tmp_path, name):
    made = base(name)
    task = Task("sentiment", "p-tuning-v2", random_prefix(made.lm))
    assert export_peft(made.lm, task, tmp_path / "out") == "PREFIX_TUNING"
    assert_same(by_peft(in_peft(made, tmp_path / "out")), by_task(made.lm, task))
    back = import_peft(made.lm, read_peft(str(tmp_path / "out")), "sentiment")
    for one, other in zip(
        (*back.prefix.keys, *back.prefix.values), (*task.prefix.keys, *task.prefix.values), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_lowered_soft_tokens_are_exported_as_a_prefix(base, tmp_path, name):
    from foreword.prompts.init import random_values

    made = base(name)
    start = random_values(7, torch.Generator().manual_seed(1))
    task = Task("soft", "prompt-tuning", lower(made.lm, get_method("prompt-tuning").encoder(made.lm, start)))
    export_peft(made.lm, task, tmp_path / "out")
    assert_same(by_peft(in_peft(made, tmp_path / "out")), by_task(made.lm, task))


def test_a_static_text_is_exported_with_a_word_about_its_first_token(base, tmp_path):
    made = base("llama")
    task = replace(static_task(made.lm, "polite", "prompt", "Be polite.\n"))
    export_peft(made.lm, task, tmp_path / "out")
    assert_same(by_peft(in_peft(made, tmp_path / "out")), by_task(made.lm, task))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "add_special_tokens=False" in card
    assert from_text(made.lm.tokenizer, task, "Hello").prefix is not None


def test_the_card_keeps_the_prompt_format(base, tmp_path):
    made = base("llama")
    words = {"good": (" great",), "bad": (" poor", " awful")}
    task = Task("t", "x", random_prefix(made.lm), template="Review: {text}\nLabel:{mask}", verbalizer=words)
    export_peft(made.lm, task, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "    Review: {text}\n    Label:{mask}" in card
    assert '{"good": [" great"], "bad": [" poor", " awful"]}' in card
    assert "add_special_tokens" not in card


def low_rank(lm, names, seed=1) -> Adapter:
    generator = torch.Generator().manual_seed(seed)

    def pair(name):
        module = dict(lm.model.named_modules())[name]
        into, out = module.weight.shape if type(module).__name__.endswith("Conv1D") else module.weight.shape[::-1]
        return LowRank(torch.randn(3, into, generator=generator) * 0.2, torch.randn(out, 3, generator=generator) * 0.2)

    return Adapter({name: pair(name) for name in names}, scale=1.5)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("llama", ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"]),
        ("qwen3", ["model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj"]),
        ("gpt2", ["transformer.h.0.attn.c_attn", "transformer.h.2.mlp.c_fc"]),
        ("bert", ["bert.encoder.layer.1.attention.self.query"]),
    ],
)
def test_lora_gives_the_same_logits_in_peft(base, tmp_path, name, layers, recwarn):
    made = base(name)
    task = Task("lora", "lora", empty_prefix(made.lm), adapter=low_rank(made.lm, layers))
    assert export_peft(made.lm, task, tmp_path / "out") == "LORA"
    assert_same(by_peft(in_peft(made, tmp_path / "out")), by_task(made.lm, task), 2e-5)
    assert not [warning for warning in recwarn if "fan_in_fan_out" in str(warning.message)]
    back = import_peft(made.lm, read_peft(str(tmp_path / "out")), "lora")
    assert_same(by_task(made.lm, back), by_task(made.lm, task))


def test_the_folder_names_the_place_of_its_base_model(base, tmp_path):
    from foreword.models import load_model

    made = base("llama")
    lm = load_model(str(made.folder), dtype="float32")
    export_peft(lm, Task("t", "x", random_prefix(lm)), tmp_path / "out")
    assert base_model(read_peft(str(tmp_path / "out"))) == str(made.folder)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["num_attention_heads"], config["token_dim"], config["num_layers"]) == (2, 32, 3)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"soft": torch.zeros(2, 48), "template": "{text}{soft:2}{mask}"},
            "soft tokens inside its template, which a PEFT folder cannot hold",
        ),
        ({"members": (1,)}, "has several prefixes whose answers are combined"),
        ({"adapter": Adapter({})}, "has a prefix and low-rank changes at once"),
    ],
)
def test_what_a_folder_cannot_hold_is_refused(tmp_path, fields, says):
    lm = family("llama")
    task = replace(Task("t", "x", random_prefix(lm)), **fields)
    with pytest.raises(UsageError, match=says):
        export_peft(lm, task, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_learned_is_nothing_to_export(tmp_path):
    lm = family("llama")
    with pytest.raises(UsageError, match="has nothing learned in it, only a template"):
        export_peft(lm, Task("t", "manual", empty_prefix(lm), template="{text}{mask}"), tmp_path)


def test_requests_at_other_positions_are_refused(tmp_path):
    lm = family("bert")
    task = Task("t", "x", replace(random_prefix(lm), offset=0))
    with pytest.raises(
        UsageError, match="starts its requests at position 0 behind 9 positions; PEFT starts them right"
    ):
        export_peft(lm, task, tmp_path)


@pytest.mark.parametrize("middle", [LayerShape(2, 8, 8), LayerShape(1, 16, 16), None])
def test_layers_of_different_shapes_are_refused(tmp_path, middle):
    lm = family("llama")
    narrow = LayerShape(2, 16, 8)
    shapes = (narrow,) * 3 if middle is None else (LayerShape(2, 16, 16), middle, LayerShape(2, 16, 16))
    identity = replace(lm.identity, layers=shapes)
    keys = tuple(torch.zeros(s.kv_heads, 2, s.key_dim) for s in shapes)
    values = tuple(torch.zeros(s.kv_heads, 2, s.value_dim) for s in shapes)
    task = Task("t", "x", KVPrefix(identity, keys, values, offset=2))
    with pytest.raises(UsageError, match="PEFT's prefix tuning has one shape for keys and values of all layers"):
        export_peft(replace(lm, identity=identity), task, tmp_path / "out")


def test_another_model_is_refused(tmp_path):
    with pytest.raises(ModelMismatch, match="task 't' was made for another model"):
        export_peft(family("qwen3"), Task("t", "x", random_prefix(family("llama"))), tmp_path)


def test_a_folder_in_use_is_left_alone(tmp_path):
    lm = family("llama")
    (tmp_path / "notes.txt").write_text("mine")
    task = Task("t", "x", lower_tokens(lm, ROWS[0]))
    with pytest.raises(UsageError, match="is not an empty folder"):
        export_peft(lm, task, tmp_path)
    with pytest.raises(UsageError, match="is not an empty folder"):
        export_peft(lm, task, tmp_path / "notes.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
