"""An encoder-decoder on the command line: learned, published and measured, and asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from foreword.bank.bank import Bank
from tiny_encoder_decoders import END, PAD, save_tiny, tiny_encoder_decoder
from training.small_data import examples, write_jsonl


@pytest.fixture
def t5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The model of all commands."""
    folder = str(save_tiny("t5", tmp_path / "t5"))
    monkeypatch.setenv("FOREWORD_MODEL", folder)
    return folder


def test_a_soft_prompt_is_learned_published_and_measured(run, t5, tmp_path):
    data = write_jsonl(tmp_path / "rule.jsonl", examples(40, 1))
    held = write_jsonl(tmp_path / "held.jsonl", examples(12, 2))
    flags = ("--method", "prompt-tuning", "--template", "{text}{mask}", "--length", 5, "--max-steps", 3)
    learned = run("train", "--data", data, "--eval", held, *flags, "--publish", "rule", "--json")
    assert learned.status == 0, learned.err
    assert learned.json["prefix_bytes"] == 0
    assert learned.json["trained_parameters"] == 5 * 48
    task = Bank(tmp_path / "home" / "bank").load("rule")
    assert task.template == "{soft:5}{text}{mask}"
    assert task.soft is not None
    assert task.soft.shape == (5, 48)
    measured = run("eval", "rule", "--data", held, "--json")
    assert measured.status == 0, measured.err
    assert measured.json["metrics"] == learned.json["metrics"]


def test_the_base_model_answers_as_transformers_does(run, t5):
    lm = tiny_encoder_decoder("t5")
    answer = run("generate", "some text", "--max-tokens", 4, "--json").json
    begun = [PAD]
    ids = torch.tensor([lm.tokenizer("some text").input_ids])
    while len(begun) < 5 and begun[-1] != END:
        logits = lm.model(input_ids=ids, decoder_input_ids=torch.tensor([begun]), use_cache=False).logits
        begun.append(int(logits[0, -1].argmax()))
    assert answer["token_ids"] == begun[1:]


def test_a_prefix_is_learned_and_answers(run, t5, tmp_path):
    data = write_jsonl(tmp_path / "rule.jsonl", examples(40, 1))
    flags = ("--template", "{text}{target:label}", "--length", 4, "--max-steps", 2)
    learned = run("train", "--data", data, *flags, "--publish", "rule", "--json")
    assert learned.status == 0, learned.err
    task = Bank(tmp_path / "home" / "bank").load("rule")
    assert len(task.prefix.keys) == 8
    answer = run("generate", "rule", "xya", "--max-tokens", 3, "--json")
    assert answer.status == 0, answer.err
    assert len(answer.json["token_ids"]) <= 3
    (tmp_path / "front.txt").write_text("Answer in one letter: ", encoding="utf-8")
    refused = run("publish", "front", "--text", tmp_path / "front.txt")
    assert refused.status != 0
    assert "put it into a --template (foreword train --method manual), which is run with every request." in refused.err


def test_doctor_says_what_it_can_do(run, t5):
    found = run("doctor", "--json").json
    assert (found["kind"], found["layers"]) == ("encoder-decoder", 8)
    out = run("doctor").out
    assert "takes soft tokens: embeddings give the logits" in out
    assert "in front of its encoder, decoder and cross-attention" in out
