"""Import and export as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreword.bank.bank import Bank
from foreword.core import Task
from foreword.models import load_model
from interop.conftest import random_prefix
from tiny_models import save_tiny

peft = pytest.importorskip("peft")


def adapter(model: Path, folder: Path, config) -> Path:
    """A PEFT folder in front of the model in ``model``, away from where it starts."""
    torch.manual_seed(7)
    made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    made.save_pretrained(folder)
    return folder


def prefix(model: Path, folder: Path) -> Path:
    return adapter(model, folder, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))


def greedy(model, tokens: list[int], steps: int) -> list[int]:
    """Greedy tokens of a PEFT model, without a cache of its own."""
    for _ in range(steps):
        with torch.no_grad():
            tokens = [*tokens, int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax())]
    return tokens[-steps:]


def test_imported_published_and_asked(run, folder, tmp_path, monkeypatch):
    """The folder says which model and the folder's name becomes the task's, whatever the environment says."""
    monkeypatch.setenv("FOREWORD_MODEL", str(tmp_path / "another"))
    made = run("import", "peft", prefix(folder, tmp_path / "My-Prefix"), "--json")
    assert made.status == 0, made.err
    assert made.json["task"].startswith("my-prefix@0001-")
    assert (made.json["method"], made.json["length"]) == ("prefix-tuning", 5)
    answer = run("generate", "my-prefix", "Hello", "--model", folder, "--max-tokens", 6, "--json").json
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "My-Prefix").eval()
    question = AutoTokenizer.from_pretrained(folder)("Hello").input_ids
    assert answer["token_ids"] == greedy(model, question, 6)[: len(answer["token_ids"])]
    assert answer["usage"]["cached_tokens"] == 5


def test_import_with_a_name_and_a_wording(run, folder, tmp_path):
    source = prefix(folder, tmp_path / "adapter")
    words = '{"good": " great", "bad": " poor"}'
    made = run(
        "import", "peft", source, "--publish", "films", "--template", r"{text}\nIt was:{mask}", "--verbalizer", words
    )
    assert made.status == 0, made.err
    assert "published films@0001-" in made.out
    labelled = run("classify", "films", "fine", "--json").json["data"]
    assert set(labelled[0]["probs"]) == {"good", "bad"}
    shown = run("bank", "show", "films", "--json").json
    assert shown["provenance"]["source"] == "adapter"
    assert str(tmp_path) not in json.dumps(shown["provenance"])


def test_import_one_task_of_many(run, folder, tmp_path):
    config = peft.MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=2)
    source = adapter(folder, tmp_path / "many", config)
    unsaid = run("import", "peft", source)
    assert unsaid.status == 2
    assert "say which with --task-id" in unsaid.err
    assert run("import", "peft", source, "--task-id", 1, "--json").json["method"] == "multitask-prompt-tuning"


def test_export_and_import_again(run, folder, tmp_path):
    run("import", "peft", prefix(folder, tmp_path / "first"))
    made = run("export", "peft", "first", tmp_path / "out", "--json")
    assert made.status == 0, made.err
    assert made.json["peft_type"] == "PREFIX_TUNING"
    assert run("import", "peft", tmp_path / "out", "--publish", "second").status == 0
    bank = Bank(tmp_path / "home" / "bank")
    assert bank.load("first").prefix.digest == bank.load("second").prefix.digest
    again = run("export", "peft", "first", tmp_path / "out")
    assert again.status == 2
    assert "is not an empty folder" in again.err
    missing = run("export", "peft", "third", tmp_path / "other")
    assert missing.status == 1
    assert "no task 'third'" in missing.err


def test_import_of_chatglm(run, tmp_path):
    model = save_tiny("llama", tmp_path / "model")
    source = tmp_path / "checkpoint-3000"
    source.mkdir()
    config = {"num_layers": 3, "multi_query_group_num": 2, "kv_channels": 16, "pre_seq_len": 5}
    (source / "config.json").write_text(json.dumps(config))
    torch.save({"transformer.prefix_encoder.embedding.weight": torch.randn(5, 192)}, source / "pytorch_model.bin")
    unsaid = run("import", "ptuning-v2", source)
    assert unsaid.status == 2
    assert "does not say which model it is for; give it with --model" in unsaid.err
    made = run("import", "ptuning-v2", source, "--model", model, "--json")
    assert made.status == 0, made.err
    assert made.json["task"].startswith("checkpoint-3000@0001-")
    assert run("import", "ptuning-v2", source, "--model", model, "--prefix-only").status == 2


def test_names_are_checked_before_any_work(run, folder, tmp_path):
    source = prefix(folder, tmp_path / "adapter")
    wrong = run("import", "peft", source, "--publish", "No Name", "--model", "no/such-model")
    assert wrong.status == 2
    assert "a task name is 1 to 64 of" in wrong.err
    taken = run("import", "peft", source, "--publish", "no/such-model", "--model", "no/such-model")
    assert taken.status == 2
    nowhere = run("import", "peft", tmp_path / "nowhere")
    assert nowhere.status == 2
    assert "there is no folder or file" in nowhere.err


def test_a_name_that_belongs_to_another_model_needs_replace(run, folder, tmp_path):
    lm = load_model(str(save_tiny("qwen3", tmp_path / "other")))
    Bank(tmp_path / "home" / "bank").publish(Task("adapter", "p-tuning-v2", random_prefix(lm)))
    source = prefix(folder, tmp_path / "adapter")
    taken = run("import", "peft", source)
    assert taken.status == 1
    assert "pass --replace" in taken.err
    assert run("import", "peft", source, "--replace").status == 0


def test_lora_goes_through_the_bank(run, folder, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=2)
    made = run("import", "peft", adapter(folder, tmp_path / "lora", config), "--json")
    assert made.status == 0, made.err
    assert (made.json["method"], made.json["length"]) == ("lora", 0)
    answer = run("generate", "lora", "Hello", "--max-tokens", 6, "--json").json
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "lora").eval()
    question = AutoTokenizer.from_pretrained(folder)("Hello").input_ids
    assert answer["token_ids"] == greedy(model, question, 6)[: len(answer["token_ids"])]
    back = run("export", "peft", "lora", tmp_path / "out", "--json")
    assert back.status == 0, back.err
    assert back.json["peft_type"] == "LORA"


def test_soft_tokens_and_heads_of_an_encoder_go_through_the_bank(run, tmp_path):
    model = save_tiny("bert", tmp_path / "bert")
    source = tmp_path / "soft"
    source.mkdir()
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "base_model_name_or_path": str(model)}
    (source / "adapter_config.json").write_text(json.dumps(config))
    save_file({"prompt_embeddings": torch.randn(4, 48)}, source / "adapter_model.safetensors")
    assert run("import", "peft", source, "--json").json["length"] == 0
    task = Bank(tmp_path / "home" / "bank").load("soft")
    assert task.soft is not None
    assert task.soft.shape == (4, 48)
    assert task.template == "{soft:4}{text}"
    exported = run("export", "peft", "soft", tmp_path / "out", "--model", model, "--json")
    assert exported.json["peft_type"] == "PROMPT_TUNING"
    tagger = tmp_path / "tagger"
    tagger.mkdir()
    settings = {"_name_or_path": str(model), "architectures": ["BertPrefixForTokenClassification"]}
    (tagger / "config.json").write_text(json.dumps(settings))
    head = {"classifier.weight": torch.randn(3, 48), "classifier.bias": torch.randn(3)}
    torch.save({"prefix_encoder.embedding.weight": torch.randn(5, 288), **head}, tagger / "pytorch_model.bin")
    made = run("import", "ptuning-v2", tagger, "--json")
    assert made.status == 0, made.err
    loaded = Bank(tmp_path / "home" / "bank").load("tagger")
    assert loaded.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert loaded.prefix.length == 5
