"""Soft tokens that nothing lowers, of encoders and encoder-decoders: the same in real PEFT, there and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch

from foreword.core import Adapter, Batch, Front, Task
from foreword.errors import ModelMismatch, UsageError
from foreword.interop.export import export_peft
from foreword.interop.peft import import_peft, read_peft
from foreword.interop.prompt_format import PromptFormat
from foreword.prompts.init import random_values
from foreword.prompts.lower import empty_prefix, lower
from foreword.prompts.registry import get_method
from foreword.text import task_prompts
from interop.conftest import assert_same, by_peft, by_task, random_prefix
from interop.families import family
from tiny_encoder_decoders import FAMILIES, PAD, random_model, tiny_encoder_decoder

TEXTS, WRITTEN = ("xya", "a longer text"), ([3, 4], [5, 6])
PROMPT_FORMAT = PromptFormat("{text}{mask}", {"y": ("yes",), "n": ("no",)})


def soft_task(lm, length: int = 4, template: str = "{soft:4}{text}{mask}") -> Task:
    soft = torch.randn(length, lm.identity.hidden_size, generator=torch.Generator().manual_seed(1))
    return Task(
        "rule", "prompt-tuning", empty_prefix(lm), soft=soft, template=template, verbalizer=PROMPT_FORMAT.verbalizer
    )


def ours(lm, task: Task) -> list[torch.Tensor]:
    """Logits of the decoder behind both texts in one batch."""
    prompts = [
        task_prompts.from_fields(lm.tokenizer, task, {"text": t}, causal=False, is_encoder_decoder=True) for t in TEXTS
    ]
    rows = [row for prompt, ids in zip(prompts, WRITTEN, strict=True) for row in (prompt.token_ids, ids)]
    front = Front(prompts[0].prefix, inner_soft=prompts[0].soft, adapter=prompts[0].adapter)
    batch = Batch.from_rows(front, rows, (None, 0, None, 2))
    places = [place for end in (batch.starts[1], batch.starts[3]) for place in range(end - 1, end + 2)]
    return list(lm.logits(batch, torch.tensor(places)).unflatten(0, (2, 3)))


def theirs(lm, model) -> list[torch.Tensor]:
    """The same by PEFT, a text at a time."""
    found = []
    for text, ids in zip(TEXTS, WRITTEN, strict=True):
        given, begun = lm.tokenizer(text, return_tensors="pt"), torch.tensor([[PAD, *ids]])
        found.append(model(given.input_ids, attention_mask=given.attention_mask, decoder_input_ids=begun).logits[0])
    return found


def saved(family: str, folder: Path, kind: str = "PromptTuningConfig", **fields):
    """A PEFT model as it was saved into ``folder``."""
    torch.manual_seed(3)
    usual = {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 4, "num_transformer_submodules": 1}
    model = peft.get_peft_model(random_model(family), getattr(peft, kind)(**{**usual, **fields})).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("kind", "fields"), [("PromptTuningConfig", {}), ("PromptEncoderConfig", {"encoder_hidden_size": 24})]
)
def test_prompts_of_encoder_decoders_give_pefts_logits(family, kind, fields, tmp_path):
    lm = tiny_encoder_decoder(family)
    model = saved(family, tmp_path, kind, **fields)
    task = import_peft(lm, read_peft(str(tmp_path)), "imported", prompt_format=PROMPT_FORMAT)
    assert task.template == "{soft:4}{text}{mask}"
    assert task.prefix.length == 0
    assert_same(ours(lm, task), theirs(lm, model))


@pytest.mark.parametrize("family", FAMILIES)
def test_tasks_of_encoder_decoders_give_our_logits_in_peft(family, tmp_path):
    lm = tiny_encoder_decoder(family)
    task = soft_task(lm)
    assert export_peft(lm, task, tmp_path / "out") == "PROMPT_TUNING"
    model = peft.PeftModel.from_pretrained(random_model(family), tmp_path / "out").eval()
    assert isinstance(model, peft.PeftModelForSeq2SeqLM)
    assert_same(theirs(lm, model), ours(lm, task))
    back = import_peft(lm, read_peft(str(tmp_path / "out")), "rule", prompt_format=PROMPT_FORMAT)
    assert torch.equal(back.soft, task.soft)
    assert back.template == task.template
    assert "    {soft:4}{text}{mask}" in (tmp_path / "out" / "README.md").read_text()


def test_only_the_soft_tokens_that_the_template_places_are_exported(tmp_path):
    lm = tiny_encoder_decoder("t5")
    task = soft_task(lm, length=6)
    export_peft(lm, task, tmp_path / "out")
    assert torch.equal(import_peft(lm, read_peft(str(tmp_path / "out")), "rule").soft, task.soft[2:])
    with pytest.raises(UsageError, match="nothing learned in it, only a template"):
        export_peft(lm, replace(task, template="{text}{mask}"), tmp_path / "none")


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_soft_tokens_of_encoders_give_our_logits_in_peft(base, tmp_path, name):
    made = base(name)
    task = soft_task(made.lm, 4, "{soft:4}{text}")
    assert export_peft(made.lm, task, tmp_path / "out") == "PROMPT_TUNING"
    model = peft.PeftModel.from_pretrained(made.fresh(), tmp_path / "out").eval()
    assert_same(by_peft(model), by_task(made.lm, task))


def test_soft_tokens_that_a_prefix_holds_are_exported_as_that_prefix(base, tmp_path):
    made = base("llama")
    encoder = get_method("prompt-tuning").encoder(made.lm, random_values(7, torch.Generator().manual_seed(1)))
    task = Task("soft", "prompt-tuning", lower(made.lm, encoder), soft=encoder.soft_tokens(), template="{text}{mask}")
    assert export_peft(made.lm, task, tmp_path / "out") == "PREFIX_TUNING"
    model = peft.PeftModel.from_pretrained(made.fresh(), tmp_path / "out").eval()
    assert_same(by_peft(model), by_task(made.lm, replace(task, soft=None)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"template": "{text}{soft:4}{mask}"}, "has soft tokens inside its template"),
        ({"template": "{soft:2}{text}{soft:2}{mask}"}, "has soft tokens inside its template"),
        ({"template": "Text:{soft:4}{text}{mask}"}, "has soft tokens inside its template"),
        ({"adapter": Adapter({})}, "has soft tokens and more beside them"),
        ({"prefix": random_prefix(family("bert"))}, "has soft tokens and more beside them"),
    ],
)
def test_what_is_more_than_soft_tokens_in_front_is_refused(changes, says, tmp_path):
    lm = family("bert")
    with pytest.raises(UsageError, match=says):
        export_peft(lm, replace(soft_task(lm), **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("kind", "fields"), [("PromptTuningConfig", {}), ("PromptEncoderConfig", {"encoder_hidden_size": 24})]
)
def test_pefts_default_has_rows_for_the_decoder_which_it_never_feeds(family, kind, fields, tmp_path):
    lm = tiny_encoder_decoder(family)
    model = saved(family, tmp_path, kind, num_transformer_submodules=None, **fields)
    checkpoint = read_peft(str(tmp_path))
    assert checkpoint.config["num_transformer_submodules"] == 2
    assert len(checkpoint.tensors["prompt_embeddings"]) == 8
    task = import_peft(lm, checkpoint, "imported", prompt_format=PROMPT_FORMAT)
    assert task.template == "{soft:4}{text}{mask}"
    expected = theirs(lm, model)
    assert_same(ours(lm, task), expected)
    if kind == "PromptTuningConfig":
        with torch.no_grad():
            model.prompt_encoder["default"].embedding.weight[4:] += 100
        assert all(torch.equal(a, b) for a, b in zip(theirs(lm, model), expected, strict=True))
        with torch.no_grad():
            model.prompt_encoder["default"].embedding.weight[:4] *= -30
        assert not torch.allclose(theirs(lm, model)[0], expected[0], atol=1e-3)


def test_soft_tokens_that_reach_the_decoder_are_refused(tmp_path):
    """PEFT's multitask prompts feed the second half to the decoder."""
    saved("t5", tmp_path, "MultitaskPromptTuningConfig", num_transformer_submodules=2, num_tasks=2, num_ranks=1)
    with pytest.raises(
        UsageError, match="MULTITASK_PROMPT_TUNING in front of the decoder too; learn it again with num"
    ):
        read_peft(str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [3, 4, 6])
def test_prefixes_of_encoder_decoders_give_pefts_logits(family, layers, tmp_path):
    """PEFT feeds a decoder of 3 layers with every second one that it saves, and at the end from the first again."""
    lm = tiny_encoder_decoder(family)
    fields = {"num_layers": layers, "num_attention_heads": 4, "token_dim": 48, "num_transformer_submodules": 2}
    model = saved(family, tmp_path, "PrefixTuningConfig", **fields)
    task = import_peft(lm, read_peft(str(tmp_path)), "imported", prompt_format=PROMPT_FORMAT)
    assert len(task.prefix.keys) == 3
    assert_same(ours(lm, task), theirs(lm, model))


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_prefixes_give_our_logits_in_peft(family, tmp_path):
    lm = tiny_encoder_decoder(family)
    prefix = random_prefix(replace(lm, identity=lm.identity.decoder_only), 4)
    task = Task("rule", "prefix-tuning", prefix, template="{text}{mask}", verbalizer=PROMPT_FORMAT.verbalizer)
    assert export_peft(lm, task, tmp_path) == "PREFIX_TUNING"
    model = peft.PeftModel.from_pretrained(random_model(family), str(tmp_path)).eval()
    assert_same(ours(lm, task), theirs(lm, model))
    back = import_peft(lm, read_peft(str(tmp_path)), "imported")
    for key, own in zip(back.prefix.keys, prefix.keys, strict=True):
        torch.testing.assert_close(key, own)


def test_prefixes_in_front_of_an_encoder_are_no_files_of_peft(tmp_path):
    lm = tiny_encoder_decoder("t5")
    task = Task("rule", "prefix-tuning", random_prefix(lm, 4), template="{text}{mask}")
    with pytest.raises(UsageError, match="in front of its encoder, where PEFT's stands in front of the decoder alone"):
        export_peft(lm, task, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_encoder_decoders_give_pefts_logits(family, tmp_path):
    lm = tiny_encoder_decoder(family)
    targets = ["q", "v", "wo"] if family == "t5" else ["q_proj", "v_proj", "fc2"]
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=targets, r=3, init_lora_weights=False)
    torch.manual_seed(3)
    model = peft.get_peft_model(random_model(family), config).eval()
    model.save_pretrained(tmp_path / "theirs")
    task = import_peft(lm, read_peft(str(tmp_path / "theirs")), "imported", prompt_format=PROMPT_FORMAT)
    expected = theirs(lm, model)
    assert_same(ours(lm, task), expected)
    assert export_peft(lm, task, tmp_path / "ours") == "LORA"
    again = peft.PeftModel.from_pretrained(random_model(family), str(tmp_path / "ours")).eval()
    assert_same(theirs(lm, again), expected)


@pytest.mark.parametrize(
    ("fields", "error"), [({"num_transformer_submodules": 1}, UsageError), ({"num_layers": 2}, ModelMismatch)]
)
def test_prefixes_that_peft_does_not_feed_are_refused(fields, error, tmp_path):
    usual = {"num_layers": 3, "num_attention_heads": 4, "token_dim": 48, "num_transformer_submodules": 2}
    saved("t5", tmp_path, "PrefixTuningConfig", **{**usual, **fields})
    with pytest.raises(error, match=r"num_transformer_submodules 1, with which PEFT mixes|has num_layers 2 and"):
        import_peft(tiny_encoder_decoder("t5"), read_peft(str(tmp_path)), "imported")


@pytest.mark.parametrize("task_type", ["SEQ_2_SEQ_LM", "CAUSAL_LM", None])
def test_a_model_of_another_kind_is_refused(task_type, tmp_path):
    """Of the same width, so that nothing else would show it."""
    saved("t5", tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "task_type": task_type}))
    lm = family("llama") if task_type == "SEQ_2_SEQ_LM" else tiny_encoder_decoder("t5")
    with pytest.raises(ModelMismatch, match=f"is for {task_type}, tiny-.* is {lm.identity.architecture}; give the"):
        import_peft(lm, read_peft(str(tmp_path)), "imported")
