"""Adapters that label bring their head: the same scores as in real PEFT, there and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from foreword.bank.bank import Bank
from foreword.core import Head, Task
from foreword.engine.engine import Engine
from foreword.errors import CorruptFile, ModelMismatch, UsageError
from foreword.evaluation.predict import classify, label_scorer, make_prompt, tag
from foreword.interop.export import export_peft
from foreword.interop.peft import import_peft, read_peft
from foreword.interop.prompt_format import PromptFormat
from foreword.prompts.lower import empty_prefix
from foreword.training.train import train
from interop.conftest import random_prefix
from tiny_encoder_decoders import tiny_encoder_decoder
from training.small_data import recipe, write_jsonl

AUTO = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
}
LAYERS = r".*\.(q_proj|c_attn|query_key_value|query|qkv_proj)"
CONFIGS = {
    "prompt": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=5),
    "p-tuning": lambda task: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=5, encoder_hidden_size=24),
    "prefix": lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=5),
    "lora": lambda task: peft.LoraConfig(task_type=task, target_modules=LAYERS, r=3, lora_alpha=5),
}
SEQUENCE, WORDS = "a long text", ["a", "few", "words"]


def classifier(folder, task_type, labels=3, **config):
    if task_type != "QUESTION_ANS":
        config["num_labels"] = labels
    if task_type == "SEQ_CLS":
        config["pad_token_id"] = None
    return AUTO[task_type].from_pretrained(folder, attn_implementation="eager", **config).eval()


def saved(made, config, folder, **base):
    """A PEFT model with random values, in `folder` too."""
    torch.manual_seed(5)
    model = peft.get_peft_model(classifier(made.folder, config.task_type, **base), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def theirs(lm, model, per_token):
    """Scores of the text, or of each of the words, by PEFT."""
    if not per_token:
        return model(input_ids=torch.tensor([lm.tokenizer(SEQUENCE).input_ids])).logits
    pieces = [lm.tokenizer(word if not at else f" {word}").input_ids for at, word in enumerate(WORDS)]
    logits = model(input_ids=torch.tensor([[token for piece in pieces for token in piece]])).logits[0]
    logits = logits[len(logits) - sum(map(len, pieces)) :]
    ends = torch.tensor([len(each) for each in pieces]).cumsum(0)
    return logits[ends - 1 if lm.causal else ends - torch.tensor([len(each) for each in pieces])]


def ours(lm, task):
    field = {"tokens": WORDS} if task.head.per_token else {"text": SEQUENCE}
    with Engine(lm) as engine:
        return engine.score([make_prompt(engine, task, field)], label_scorer(engine, task))


@pytest.mark.parametrize(
    ("name", "task_type"),
    [
        *((name, "SEQ_CLS") for name in ("llama", "qwen3", "gpt2", "gpt_neox", "opt", "phi3", "mistral")),
        *((name, "TOKEN_CLS") for name in ("llama", "gpt2", "bert", "roberta")),
    ],
)
@pytest.mark.parametrize("kind", CONFIGS)
def test_scores_are_pefts_there_and_back(base, tmp_path, name, task_type, kind):
    made = base(name)
    model = saved(made, CONFIGS[kind](task_type), tmp_path / "in")
    task = import_peft(made.lm, read_peft(str(tmp_path / "in")), "imported")
    expected = theirs(made.lm, model, task_type == "TOKEN_CLS")
    assert task.labels == ("0", "1", "2")
    torch.testing.assert_close(ours(made.lm, task), expected, atol=2e-5, rtol=0)
    stored = Bank(tmp_path / "bank").publish(task)
    stored = Bank(tmp_path / "bank").load(stored.ref)
    torch.testing.assert_close(ours(made.lm, stored), expected, atol=2e-5, rtol=0)

    named = replace(stored, head=replace(stored.head, labels=("low", "middle", "high")))
    export_peft(made.lm, named, tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    auto = AUTO[task_type].from_pretrained(made.folder, config=config, attn_implementation="eager")
    again = peft.PeftModel.from_pretrained(auto, tmp_path / "out").eval()
    torch.testing.assert_close(theirs(made.lm, again, task_type == "TOKEN_CLS"), expected, atol=2e-5, rtol=0)
    back = import_peft(made.lm, read_peft(str(tmp_path / "out")), "back")
    assert back.labels == ("low", "middle", "high")
    assert torch.equal(back.head.weight, task.head.weight)
    assert torch.equal(back.head.bias, task.head.bias)


def test_imported_heads_answer_their_routes(base, tmp_path):
    made = base("llama")
    model = saved(made, CONFIGS["prefix"]("SEQ_CLS"), tmp_path / "in")
    task = import_peft(made.lm, read_peft(str(tmp_path / "in")), "imported")
    with Engine(made.lm) as engine:
        (probs,) = classify(engine, task, [{"text": SEQUENCE}])
    expected = theirs(made.lm, model, False).softmax(-1)[0]
    assert list(probs.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    saved(made, CONFIGS["lora"]("TOKEN_CLS"), tmp_path / "words")
    words = import_peft(made.lm, read_peft(str(tmp_path / "words")), "words")
    assert words.template == "{tokens}"
    with Engine(made.lm) as engine:
        assert len(tag(engine, words, [{"tokens": WORDS}])[0]) == 3


def test_labels_have_the_names_that_a_config_gives(base, tmp_path):
    made = base("gpt2")
    folder = tmp_path / "in"
    saved(made, CONFIGS["prompt"]("SEQ_CLS"), folder)

    def labels(lm=made.lm):
        return import_peft(lm, read_peft(str(folder)), "imported").labels

    made.lm.model.config.id2label = {0: "bad", 1: "so-so", 2: "good"}
    try:
        assert labels() == ("bad", "so-so", "good")
        (folder / "config.json").write_text(json.dumps({"id2label": {"0": "x", "1": "y", "2": "z"}}))
        assert labels() == ("x", "y", "z")
        for useless in ({"0": "x", "1": "y"}, {"0": "x", "1": "x", "2": "y"}, {"0": "LABEL_0"}, ["x", "y", "z"]):
            (folder / "config.json").write_text(json.dumps({"id2label": useless}))
            assert labels() == ("0", "1", "2")
    finally:
        made.lm.model.config.id2label = None


def change(folder: Path, **fields) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize("kind", ["prompt", "lora"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bert", "labels whole texts with an encoder, whose classifier in Transformers stands behind a pooler"),
        ("roberta", r"labels by several layers \(classifier.dense.bias, classifier.dense.weight, classifier.out_proj"),
    ],
)
def test_classifiers_of_encoders_are_refused_for_what_they_are(base, tmp_path, name, says, kind):
    made = base(name)
    saved(made, CONFIGS[kind]("SEQ_CLS"), tmp_path)
    with pytest.raises(UsageError, match=says):
        import_peft(made.lm, read_peft(str(tmp_path)), "imported")


def test_answers_that_are_spans_are_refused(base, tmp_path):
    saved(base("llama"), CONFIGS["prompt"]("QUESTION_ANS"), tmp_path)
    with pytest.raises(UsageError, match="qa_outputs score where an answer begins and ends in a text"):
        read_peft(str(tmp_path))


def test_modules_that_are_no_head_are_named_once(base, tmp_path):
    saved(base("llama"), CONFIGS["prefix"]("SEQ_CLS"), tmp_path)
    change(tmp_path, modules_to_save=["embed_tokens", "classifier", "score", "embed_tokens", "score"])
    with pytest.raises(UsageError, match=r"whole modules \(embed_tokens\), .* without embed_tokens in modules_to_save"):
        read_peft(str(tmp_path))


def test_heads_that_do_not_fit_are_refused(base, tmp_path):
    made = base("llama")
    saved(made, CONFIGS["prefix"]("SEQ_CLS"), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = load_file(file)
    key = "base_model.score.weight"

    def read(**changed):
        save_file({name: tensor for name, tensor in {**whole, **changed}.items() if tensor is not None}, file)
        return import_peft(made.lm, read_peft(str(tmp_path)), "imported")

    with pytest.raises(UsageError, match=r"is for SEQ_CLS and holds no head \(classifier or score\)"):
        read(**{key: None})
    with pytest.raises(ModelMismatch, match="has a head over 32 numbers, tiny-llama has hidden states of 48"):
        read(**{key: torch.zeros(3, 32)})
    with pytest.raises(CorruptFile, match=r"must have a weight \[labels, 48\]"):
        read(**{key: torch.zeros(3, 48, 1)})
    with pytest.raises(CorruptFile, match=r"bias of the head of .* must have 3 numbers, found \[2\]"):
        read(**{"base_model.score.bias": torch.zeros(2)})
    with pytest.raises(UsageError, match=r"holds base_model.other.weight besides its prompt"):
        read(**{"base_model.other.weight": torch.zeros(2)})
    biased = read(**{"base_model.score.bias": torch.ones(3)})
    assert torch.equal(biased.head.bias, torch.ones(3))


def test_a_prompt_format_must_fit_the_head(base, tmp_path):
    made = base("llama")
    saved(made, CONFIGS["prompt"]("SEQ_CLS"), tmp_path)
    checkpoint = read_peft(str(tmp_path))

    def imported(template, verbalizer=None):
        return import_peft(
            made.lm, checkpoint, "imported", prompt_format=PromptFormat.parse(template, verbalizer)
        ).template

    assert imported("Review: {text}") == "Review: {text}"
    with pytest.raises(UsageError, match="has a head of its own, which labels"):
        imported("{text}{mask}", '{"a": "b", "c": "d"}')
    with pytest.raises(UsageError, match=r"take \{target:...\} out"):
        imported("{text}{target:answer}")


def test_encoder_decoders_have_no_states_to_read(base, tmp_path):
    saved(base("llama"), CONFIGS["prompt"]("SEQ_CLS"), tmp_path)
    with pytest.raises(UsageError, match="the states of an encoder-decoder, which no head here reads"):
        import_peft(tiny_encoder_decoder("t5"), read_peft(str(tmp_path)), "imported")


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("llama", {"head": Head(("a", "b"), torch.ones(2, 48), torch.ones(2))}, "a head with a bias, and SEQ_CLS in"),
        ("bert", {"head": Head(("a", "b"), torch.ones(2, 48), torch.zeros(2))}, "stands behind a pooler"),
        ("llama", {"bias": {"a": 0.1, "b": 0.2}}, "scores that are calibrated by a bias"),
        ("llama", {"prefix": None}, "has a head alone, and PEFT holds one only beside"),
    ],
)
def test_heads_that_peft_cannot_hold_are_not_exported(base, tmp_path, name, fields, says):
    lm = base(name).lm
    if "prefix" in fields:
        fields = {"prefix": empty_prefix(lm)}
    plain = Head(("a", "b"), torch.ones(2, 48), torch.zeros(2))
    task = replace(Task("t", "x", random_prefix(lm), template="{text}", head=plain), **fields)
    with pytest.raises(UsageError, match=says):
        export_peft(lm, task, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("problem_type", "labels", "names"),
    [
        ("multi_label_classification", 3, ("0", "1", "2")),
        ("regression", 1, ("value",)),
        (None, 1, ("value",)),
    ],
)
def test_what_the_outputs_mean_goes_along(base, tmp_path, problem_type, labels, names):
    made = base("llama")
    model = saved(made, CONFIGS["prefix"]("SEQ_CLS"), tmp_path / "in", labels=labels)
    config = {"problem_type": problem_type} if problem_type else {}
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    task = import_peft(made.lm, read_peft(str(tmp_path / "in")), "imported")
    assert (task.labels, task.head.problem_type) == (names, problem_type or "regression")
    expected = theirs(made.lm, model, False)[0]
    with Engine(made.lm) as engine:
        (found,) = classify(engine, task, [{"text": SEQUENCE}])
    wanted = expected.sigmoid() if labels > 1 else expected
    assert list(found.values()) == pytest.approx(wanted.tolist(), abs=1e-5)
    export_peft(made.lm, task, tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.problem_type, config.num_labels) == (task.head.problem_type, labels)
    back = import_peft(made.lm, read_peft(str(tmp_path / "out")), "back")
    assert (back.labels, back.head.problem_type) == (task.labels, task.head.problem_type)


def test_several_numbers_are_refused(base, tmp_path):
    made = base("llama")
    saved(made, CONFIGS["prefix"]("SEQ_CLS"), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"problem_type": "regression"}))
    with pytest.raises(UsageError, match="answers 3 numbers, and a task answers one"):
        import_peft(made.lm, read_peft(str(tmp_path)), "imported")


def test_a_learned_head_without_bias_answers_the_same_in_peft(base, tmp_path):
    made = base("llama")
    rows = [{"text": "aa", "label": "x"}, {"text": "bb", "label": "y"}] * 8
    settings = recipe(
        tmp_path,
        data=write_jsonl(tmp_path / "rows.jsonl", rows),
        template="{text}",
        head="linear",
        head_bias=False,
        length=4,
        max_steps=4,
    )
    task = train(made.lm, settings).task
    export_peft(made.lm, task, tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    auto = AUTO["SEQ_CLS"].from_pretrained(made.folder, config=config, attn_implementation="eager")
    again = peft.PeftModel.from_pretrained(auto, tmp_path / "out").eval()
    torch.testing.assert_close(theirs(made.lm, again, False), ours(made.lm, task), atol=2e-5, rtol=0)
