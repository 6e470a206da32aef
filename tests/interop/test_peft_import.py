"""What real PEFT saves answers here as it does there, and what would not is refused by name."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from random import Random

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from foreword.errors import CorruptFile, ForewordError, ModelMismatch, PromptTooLong, UsageError
from foreword.interop.peft import base_model, import_peft, read_peft
from foreword.interop.prompt_format import PromptFormat
from interop.conftest import assert_same, by_peft, by_task, config_of

FAMILIES = ("llama", "qwen3", "mistral", "gemma3", "gpt2", "gpt_neox", "opt", "phi3", "glm", "bert", "roberta")
P, LAYERS = 9, 3
TYPES = [1, 2, 2, 3, 4, 1, 2, 3, 4]
"""Which tokens of CPT are which part of its examples."""


def learned(model, **task):
    """Move all that PEFT would train away from where it starts."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def soft(name, **more):
    return peft.PromptTuningConfig(**config_of(name), num_virtual_tokens=P, **more)


def prefix(name, **more):
    return peft.PrefixTuningConfig(**config_of(name), num_virtual_tokens=P, **more)


def encoder(name, kind):
    return peft.PromptEncoderConfig(
        **config_of(name), num_virtual_tokens=P, encoder_hidden_size=24, encoder_reparameterization_type=kind
    )


def saved(base, config, folder: Path):
    """A PEFT model with random values, in `folder` too."""
    model = learned(peft.get_peft_model(base.fresh(), config))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("method", "make"),
    [
        ("prompt-tuning", soft),
        ("p-tuning", lambda name: encoder(name, "MLP")),
        ("prefix-tuning", prefix),
    ],
)
def test_imported_prompts_give_pefts_logits(base, tmp_path, name, method, make):
    made = base(name)
    model = saved(made, make(name), tmp_path)
    checkpoint = read_peft(str(tmp_path))
    task = import_peft(made.lm, checkpoint, "imported")
    assert base_model(checkpoint) == str(made.folder)
    assert task.method == method
    assert_same(by_task(made.lm, task), by_peft(model))
    again = peft.PeftModel.from_pretrained(made.fresh(), tmp_path).eval()
    assert_same(by_task(made.lm, task), by_peft(again))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "make",
    [
        lambda name: encoder(name, "LSTM"),
        lambda name: prefix(name, prefix_projection=True, encoder_hidden_size=24),
        lambda name: peft.CartridgeConfig(**config_of(name), num_virtual_tokens=P, num_frozen_tokens=2),
        lambda name: peft.CPTConfig(
            **config_of(name), cpt_token_ids=list(range(40, 40 + P)), cpt_tokens_type_mask=TYPES
        ),
        lambda name: peft.LoraConfig(**config_of(name), target_modules="all-linear", r=3, lora_alpha=5),
    ],
    ids=["lstm", "projection", "cartridge", "cpt", "lora"],
)
def test_further_kinds_give_pefts_logits(base, tmp_path, name, make):
    made = base(name)
    model = saved(made, make(name), tmp_path)
    task = import_peft(made.lm, read_peft(str(tmp_path)), "imported")
    assert_same(by_task(made.lm, task), by_peft(model), 2e-5)
    assert (task.adapter is None) == (task.prefix.length == P)


def test_one_task_of_many(base, tmp_path):
    made = base("llama")
    config = peft.MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, num_tasks=3, num_ranks=2)
    model = saved(made, config, tmp_path)
    checkpoint = read_peft(str(tmp_path))
    for task_id in range(3):
        task = import_peft(made.lm, checkpoint, "imported", task_id=task_id)
        expected = by_peft(model, task_ids=torch.tensor([task_id]))
        assert_same(by_task(made.lm, task), expected)
        assert task.provenance["task_id"] == task_id
    with pytest.raises(UsageError, match="holds 3 tasks; say which with --task-id, from 0"):
        import_peft(made.lm, checkpoint, "imported")
    with pytest.raises(UsageError, match="has no task 3; --task-id goes from 0 to 2"):
        import_peft(made.lm, checkpoint, "imported", task_id=3)
    with pytest.raises(UsageError, match="has no task -1"):
        import_peft(made.lm, checkpoint, "imported", task_id=-1)


def test_a_task_id_is_refused_where_there_are_no_tasks(base, tmp_path):
    made = base("llama")
    saved(made, soft("llama"), tmp_path)
    with pytest.raises(UsageError, match="is PROMPT_TUNING, which has no task ids; leave --task-id out"):
        import_peft(made.lm, read_peft(str(tmp_path)), "imported", task_id=0)


def test_where_it_came_from_is_kept_without_paths(base, tmp_path):
    made = base("llama")
    saved(made, prefix("llama"), tmp_path / "sst2")
    task = import_peft(made.lm, read_peft(str(tmp_path / "sst2")), "imported")
    assert task.provenance["source"] == "sst2"
    assert task.provenance["peft_type"] == "PREFIX_TUNING"
    assert len(task.provenance["weights_sha256"]) == 64
    assert str(tmp_path) not in json.dumps(task.provenance)
    assert task.prefix.model == made.lm.identity
    assert task.prefix.bos == "request"


def test_prompt_format_goes_with_the_task(base, tmp_path):
    made = base("bert")
    saved(made, soft("bert"), tmp_path)
    prompt_format = PromptFormat.parse("{text} It was {mask}.", '{"good": "great", "bad": "poor"}')
    task = import_peft(made.lm, read_peft(str(tmp_path)), "imported", prompt_format=prompt_format)
    assert task.template == "{soft:9}{text} It was {mask}."
    assert task.labels == ("good", "bad")
    assert task.soft is not None
    assert task.prefix.length == 0
    bare = import_peft(made.lm, read_peft(str(tmp_path)), "imported")
    assert bare.template == "{soft:9}{text}"
    with pytest.raises(UsageError, match=r"take \{soft:N\} out of --template"):
        PromptFormat.parse("{soft:3}{text}{mask}", "{}")
    with pytest.raises(UsageError, match="go together; give both, or neither"):
        PromptFormat.parse("{text}{mask}", None)


def test_legacy_bin_gives_the_same(base, tmp_path):
    made = base("llama")
    model = saved(made, prefix("llama"), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "adapter_model.bin")
    weights.unlink()
    assert_same(by_task(made.lm, import_peft(made.lm, read_peft(str(tmp_path)), "imported")), by_peft(model))


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("ran-it"),))


def test_a_pickle_with_code_is_not_run(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(base("llama"), prefix("llama"), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({"prompt_embeddings": Malicious()}, tmp_path / "adapter_model.bin")
    with pytest.raises(CorruptFile, match=r"adapter_model.bin is not a pickle of tensors alone, so nothing of it"):
        read_peft(str(tmp_path))
    assert not Path("ran-it").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("adapter_model.safetensors", save_file),
        ("adapter_model.bin", torch.save),
        ("adapter_model.bin", lambda tensors, file: torch.save(tensors, file, _use_new_zipfile_serialization=False)),
    ],
    ids=["safetensors", "zip", "pickle"],
)
def test_damaged_weights_are_one_sentence(base, tmp_path, kind, write):
    """Cut anywhere, or with other bytes anywhere in the part that says what is in it."""
    saved(base("llama"), prefix("llama"), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    file = tmp_path / kind
    write(tensors, file)
    whole, random = file.read_bytes(), Random(4)
    for cut in (0, 1, 7, 100, len(whole) // 2):
        file.write_bytes(whole[:cut])
        with pytest.raises(CorruptFile):
            read_peft(str(tmp_path))
    for _ in range(150):
        altered = bytearray(whole)
        altered[random.randrange(400)] = random.randrange(256)
        file.write_bytes(altered)
        with suppress(ForewordError):
            import_peft(base("llama").lm, read_peft(str(tmp_path)), "imported")


def test_a_bin_of_something_else_is_refused(base, tmp_path):
    saved(base("llama"), prefix("llama"), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({"prompt_embeddings": {"nested": torch.zeros(1)}}, tmp_path / "adapter_model.bin")
    with pytest.raises(CorruptFile, match="must hold tensors by name and nothing else"):
        read_peft(str(tmp_path))


def change(folder: Path, **fields) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"peft_type": "POLY"}, "is of PEFT's type POLY; what can be imported is PROMPT_TUNING, P_TUNING"),
        ({"peft_type": ["LORA"]}, "is of PEFT's type"),
        ({"modules_to_save": ["classifier", "score"]}, r"replaces whole modules \(classifier, score\)"),
        ({"task_type": "SEQ_CLS"}, r"is for SEQ_CLS and holds no head \(classifier or score\)"),
        ({"task_type": "IMAGE_CLS"}, "is for IMAGE_CLS, whose answers do not come from"),
        ({"num_transformer_submodules": 2}, "has num_transformer_submodules 2, more prompts than its model has places"),
    ],
)
def test_kinds_that_would_answer_otherwise_are_refused(base, tmp_path, fields, says):
    saved(base("llama"), prefix("llama"), tmp_path)
    change(tmp_path, **fields)
    with pytest.raises(UsageError, match=says):
        read_peft(str(tmp_path))


def test_another_base_model_is_warned_of(base, tmp_path, caplog):
    made = base("llama")
    saved(made, prefix("llama"), tmp_path)
    import_peft(made.lm, read_peft(str(tmp_path)), "imported")
    for same in ("tiny-llama", "elsewhere/Tiny-Llama/", "C:\\models\\tiny-llama", None):
        change(tmp_path, base_model_name_or_path=same)
        import_peft(made.lm, read_peft(str(tmp_path)), "imported")
    assert [line for line in caplog.messages if str(made.folder) not in line] == []
    caplog.clear()
    change(tmp_path, base_model_name_or_path="meta-llama/Llama-3.2-1B")
    import_peft(made.lm, read_peft(str(tmp_path)), "imported")
    assert "was learned on meta-llama/Llama-3.2-1B, and is imported for tiny-llama; unless both" in caplog.text


def test_a_lora_on_more_than_layers_says_what_to_leave_out(base, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "embed_tokens"])
    saved(base("llama"), config, tmp_path)
    with pytest.raises(CorruptFile, match=r"or train it again without embed_tokens\.$"):
        import_peft(base("llama").lm, read_peft(str(tmp_path)), "imported")


def test_one_revision_of_a_base_model_is_asked_for(base, tmp_path):
    saved(base("llama"), prefix("llama"), tmp_path)
    change(tmp_path, revision="v2")
    with pytest.raises(UsageError, match="was learned on revision v2 of its base model; fetch that one"):
        base_model(read_peft(str(tmp_path)))


@pytest.mark.parametrize(("kind", "width"), [(prefix, LAYERS * 2 * 48), (soft, 48)])
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_prompts_that_leave_no_room_are_refused(base, tmp_path, name, kind, width):
    made = base(name)
    saved(made, kind(name), tmp_path)
    save_file({"prompt_embeddings": torch.zeros(256, width)}, tmp_path / "adapter_model.safetensors")
    change(tmp_path, num_virtual_tokens=256)
    with pytest.raises(PromptTooLong, match=f"has 256 positions, the context of tiny-{name} is 256; no request fits"):
        import_peft(made.lm, read_peft(str(tmp_path)), "imported")


@pytest.mark.parametrize(("kind", "says"), [(prefix, "numbers a position for tiny-gpt2"), (soft, "soft tokens of 32")])
def test_another_models_widths_are_refused(base, tmp_path, kind, says):
    saved(base("llama"), kind("llama"), tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    if kind is soft:
        save_file(
            {"prompt_embeddings": weights["prompt_embeddings"][:, :32].contiguous()},
            tmp_path / "adapter_model.safetensors",
        )
    with pytest.raises(ModelMismatch, match=says):
        import_peft(base("gpt2").lm, read_peft(str(tmp_path)), "imported")


def test_layers_that_the_model_has_not_are_named(base, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    saved(base("gpt2"), config, tmp_path)
    with pytest.raises(ModelMismatch, match=r"changes the layer transformer.h.0.attn.c_attn, which LlamaForCausalLM"):
        import_peft(base("llama").lm, read_peft(str(tmp_path)), "imported")


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "must hold the tensor prompt_embeddings"),
        ({"prompt_embeddings": torch.zeros(P + 1, 192)}, "must be floating-point numbers 9 x any, found"),
        ({"prompt_embeddings": torch.zeros(P, 192, dtype=torch.int8)}, r"found \[9, 192\] of int8"),
        ({"prompt_embeddings": torch.zeros(P, 2, 96)}, "must be floating-point numbers 9 x any"),
    ],
)
def test_tensors_that_are_not_what_the_config_says(base, tmp_path, tensors, says):
    saved(base("llama"), prefix("llama"), tmp_path)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CorruptFile, match=says):
        import_peft(base("llama").lm, read_peft(str(tmp_path)), "imported")


def test_further_tensors_are_not_lost_in_silence(base, tmp_path):
    saved(base("llama"), prefix("llama"), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.score.weight": torch.zeros(2, 48)}, file)
    with pytest.raises(UsageError, match=r"holds base_model.score.weight besides its prompt"):
        import_peft(base("llama").lm, read_peft(str(tmp_path)), "imported")


@pytest.mark.parametrize("length", [None, 0, "9", True])
def test_a_config_without_a_length_is_refused(base, tmp_path, length):
    saved(base("llama"), prefix("llama"), tmp_path)
    change(tmp_path, num_virtual_tokens=length)
    with pytest.raises((UsageError, CorruptFile), match=r"num_virtual_tokens|must be floating-point numbers"):
        import_peft(base("llama").lm, read_peft(str(tmp_path)), "imported")


def test_places_that_hold_no_checkpoint(tmp_path):
    for source in (tmp_path / "none", "a/b/c", "~/none-such-folder"):
        with pytest.raises(UsageError, match="there is no folder or file"):
            read_peft(str(source))
    with pytest.raises(UsageError, match=r"has no file adapter_model.safetensors or adapter_model.bin"):
        read_peft(str(tmp_path))
    save_file({"a": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=r"has no adapter_config.json"):
        read_peft(str(tmp_path))
    for text in ("{", "[]"):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(CorruptFile, match=r"is not JSON|must be a JSON object, found a list"):
            read_peft(str(tmp_path))


def test_a_hub_id_is_read_from_the_hubs_cache(base, tmp_path, monkeypatch):
    """As a machine without a network has it: the ordinary cache of the Hub client, and nothing else."""
    made = base("llama")
    repository = tmp_path / "hub" / "models--someone--Adapter"
    model = saved(made, prefix("llama"), repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    checkpoint = read_peft("someone/Adapter")
    assert checkpoint.name == "Adapter"
    assert_same(by_task(made.lm, import_peft(made.lm, checkpoint, "imported")), by_peft(model))
    with pytest.raises(UsageError, match="someone/other could not be fetched"):
        read_peft("someone/other")
