"""The teaching script: what it learns from, what it computes, and the whole of it as a command."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from examples.conftest import Load, Run
from foreword.attention import ATTN_IMPLEMENTATION
from foreword.bank.bank import Bank
from foreword.core import Task
from foreword.prompts.lower import empty_prefix, lower
from foreword.text import task_prompts
from tiny_models import tiny_model

SCRIPT = "ptuning_v2_demo.py"


@pytest.fixture(scope="module")
def demo(load: Load) -> ModuleType:
    return load(SCRIPT)


def losses(output: str) -> list[float]:
    return [float(value) for value in re.findall(r"'loss': '?([0-9.]+)", output)]


def answers(output: str) -> list[str]:
    return re.findall(r"with the prefix: +(.+)", output)


def test_the_rows_are_two_hundred_different_ones_the_same_every_time(demo):
    rows = demo.build_dataset()
    assert len({json.dumps(row, sort_keys=True) for row in rows}) == 200
    assert rows == demo.build_dataset()
    assert not {row["input"] for row in rows} & {row["input"] for row in demo.build_dataset(20, seed=1)}
    assert {row["instruction"] for row in rows} == {topic[0] for topic in demo.TOPICS}
    assert not any("{" in text for row in rows for text in row.values())


def test_a_question_has_the_tokens_that_the_engine_will_run(demo):
    lm = tiny_model("llama")
    task = Task(demo.TASK, "p-tuning-v2", empty_prefix(lm), template=demo.TEMPLATE)
    for sample in demo.build_dataset(10):
        row = demo.tokenize(lm.tokenizer, sample, answer_only=True)
        served = task_prompts.from_fields(lm.tokenizer, task, sample).token_ids
        assert tuple(row["input_ids"][: len(served)]) == served
        assert row["labels"][: len(served)] == [demo.IGNORED] * len(served)
        assert row["labels"][len(served) :] == row["input_ids"][len(served) :]
        assert row["input_ids"][-1] == lm.tokenizer.eos_token_id
        assert demo.tokenize(lm.tokenizer, sample, answer_only=False)["labels"] == row["input_ids"]


@pytest.mark.parametrize("answer_only", [True, False])
@pytest.mark.parametrize("encoder", ["none", "mlp", "lstm"])
def test_the_loss_is_that_of_plain_transformers_behind_the_prefix(demo, answer_only, encoder):
    lm = tiny_model("llama")
    config = demo.PTuningConfig(prompt_length=5, encoder=encoder)
    model = demo.inject(lm, config, "指令：查询物流")
    rows = [demo.tokenize(lm.tokenizer, sample, answer_only) for sample in demo.build_dataset(3)]
    loss = model(**demo.collate(rows))["loss"]
    prefix, total, count = lower(lm, model.encoder), 0.0, 0
    assert prefix.length == 5
    lm.model.set_attn_implementation("sdpa")
    try:
        for row in rows:
            cache = DynamicCache(config=lm.model.config)
            for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
                cache.update(key[None], value[None], layer)
            ids = torch.tensor([row["input_ids"]])
            positions = torch.arange(5, 5 + ids.shape[1])[None]
            logits = lm.model(ids, position_ids=positions, past_key_values=cache).logits[0, :-1]
            labels = torch.tensor(row["labels"][1:])
            total += float(F.cross_entropy(logits, labels, ignore_index=demo.IGNORED, reduction="sum"))
            count += int((labels != demo.IGNORED).sum())
    finally:
        lm.model.set_attn_implementation(ATTN_IMPLEMENTATION)
    assert loss.item() == pytest.approx(total / count, abs=1e-4)
    loss.backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_only_what_is_learned_is_in_the_module(demo):
    lm = tiny_model("llama")
    model = demo.inject(lm, demo.PTuningConfig(prompt_length=5, encoder="none"), "指令")
    shape = lm.identity.layers[0]
    per_position = len(lm.identity.layers) * shape.kv_heads * (shape.key_dim + shape.value_dim)
    assert sum(parameter.numel() for parameter in model.parameters()) == 5 * per_position
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


def test_it_trains_saves_reloads_and_generates(run: Run, tiny_llama: Path, tmp_path: Path):
    common = ("--output-dir", tmp_path / "out", "--device", "cpu")
    learn = ("--max-steps", 60, "--logging-steps", 10, "--lr", 0.05, "--prompt-length", 8)
    trained = run(SCRIPT, "--model-name", tiny_llama, *learn, *common)
    assert sum(losses(trained)[-2:]) < 0.95 * sum(losses(trained)[:2])
    assert len(answers(trained)) == 3
    assert answers(run(SCRIPT, "--generate-only", *common)) == answers(trained)
    task = Bank(tmp_path / "out" / "bank").load("customer-service")
    assert (task.method, task.prefix.length, task.adapter) == ("p-tuning-v2", 8, None)
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").is_file()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["lr"] == 0.05


@pytest.mark.parametrize(
    ("options", "method"),
    [
        (["--encoder", "lstm", "--answer-only"], "p-tuning-v2"),
        (["--encoder", "mlp", "--lora", "--bf16", "--full-loss"], "lora-hybrid"),
    ],
)
def test_its_options_learn_and_generate(demo, tiny_llama, tmp_path, capsys, options, method):
    place = ["--output-dir", str(tmp_path), "--device", "cpu"]
    short = ["--max-steps", "2", "--logging-steps", "1", "--prompt-length", "4"]
    demo.main([*place, "--model-name", str(tiny_llama), *short, *options])
    assert len(answers(capsys.readouterr().out)) == 3
    demo.main([*place, "--generate-only", "--ask", "处理退款", "台灯怎么退钱？"])
    assert len(answers(capsys.readouterr().out)) == 1
    task = Bank(tmp_path / "bank").load("customer-service")
    assert task.method == method
    assert (task.adapter is not None) == (method == "lora-hybrid")
    assert task.prefix.keys[0].dtype == (torch.bfloat16 if "--bf16" in options else torch.float32)


def test_the_held_out_rows_are_evaluated_and_never_learned(demo):
    rows = demo.build_dataset()
    learned, held = demo.split(rows, 0.1)
    assert (len(learned), len(held), learned + held) == (180, 20, rows)
    assert demo.split(rows, 0) == (rows, [])
    with pytest.raises(SystemExit, match="leaves none of 200 rows"):
        demo.split(rows, 1)


def test_a_run_goes_on_exactly_where_its_last_epoch_ended(demo, tiny_llama, tmp_path, capsys):
    settings = ["--model-name", str(tiny_llama), "--device", "cpu", "--prompt-length", "4", "--held-out", "0.4"]
    settings += ["--per-device-train-batch-size", "60", "--logging-steps", "1", "--gradient-checkpointing"]
    demo.main([*settings, "--output-dir", str(tmp_path / "whole"), "--epochs", "3"])
    whole = capsys.readouterr().out
    # The rate falls over the whole length, which must be known: the second half is thrown away and run again.
    demo.main([*settings, "--output-dir", str(tmp_path / "cut"), "--epochs", "3"])
    for step in (4, 6):
        shutil.rmtree(tmp_path / "cut" / f"checkpoint-{step}")
    capsys.readouterr()
    demo.main([*settings, "--output-dir", str(tmp_path / "cut"), "--epochs", "3", "--resume"])
    resumed = capsys.readouterr().out
    assert len(losses(whole)) == 6
    assert losses(resumed) == losses(whole)[2:]
    assert len(re.findall(r"'eval_loss'", whole)) == 3
    load = [Bank(tmp_path / name / "bank").load("customer-service") for name in ("whole", "cut")]
    assert all(torch.equal(a, b) for a, b in zip(load[0].prefix.keys, load[1].prefix.keys, strict=True))


def test_checkpointing_gives_the_same_losses(demo, tiny_llama, tmp_path, capsys):
    found = []
    for options in ([], ["--gradient-checkpointing"]):
        place = ["--output-dir", str(tmp_path / str(len(found))), "--device", "cpu", "--model-name", str(tiny_llama)]
        demo.main([*place, "--max-steps", "3", "--logging-steps", "1", "--prompt-length", "4", *options])
        found.append(losses(capsys.readouterr().out))
    assert found[0] == pytest.approx(found[1], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--resume"], "has no checkpoint to resume from; run without --resume first"),
        (["--fp16"], "--fp16 needs the loss scaling of CUDA"),
        (["--fp16", "--bf16"], "exclude each other"),
        (["--generate-only", "--lr", "0.1"], "takes lr from the folder"),
        (["--generate-only"], "holds no saved run"),
    ],
)
def test_what_cannot_be_done_is_said(demo, tiny_llama, tmp_path, options, says):
    model = [] if "--generate-only" in options else ["--model-name", str(tiny_llama)]
    with pytest.raises(SystemExit, match=says):
        demo.main(["--output-dir", str(tmp_path), "--device", "cpu", *model, *options])


@pytest.mark.slow
def test_the_loss_falls_on_the_built_in_model(run: Run, tmp_path: Path):
    output = run(SCRIPT, "--output-dir", tmp_path, "--device", "cpu")
    found = losses(output)
    assert len(found) == 18  # of 180 rows, two a step, every fifth
    assert sum(found[-4:]) < 0.9 * sum(found[:4])
    assert len(answers(output)) == 3
