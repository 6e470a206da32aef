"""A LoRA folder is PEFT's own: what is written loads there, what PEFT writes is read here, other things are refused."""

from __future__ import annotations

import copy
import json
import math
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from foreword.bank.adapter_file import CONFIG, WEIGHTS, make_adapter, read_adapter, write_adapter
from foreword.bank.bank import Bank
from foreword.core import Adapter, LowRank
from foreword.errors import BankError, CorruptFile, UsageError
from tiny_models import tiny_config

TOKENS = torch.tensor([[5, 9, 2, 77, 30, 1, 14]])
LLAMA = {"self_attn.q_proj": (48, 64), "self_attn.v_proj": (48, 32), "mlp.down_proj": (64, 48)}
GPT2 = {"attn.c_attn": (48, 144), "attn.c_proj": (48, 48), "mlp.c_fc": (48, 192)}
FAMILIES = {"llama": ("model.layers", LLAMA), "gpt2": ("transformer.h", GPT2)}


def fresh(family: str) -> nn.Module:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(tiny_config(family)).eval()


def draw_adapter(family: str, rank: Callable[[int], int], scale: float, dtype: torch.dtype = torch.float32) -> Adapter:
    """Factors for all listed modules of all layers; ``rank`` is asked with a running number."""
    stem, modules = FAMILIES[family]
    draw, layers = torch.Generator().manual_seed(1), {}
    for index in range(3):
        for module, (inside, outside) in modules.items():
            size = rank(len(layers))
            down = torch.randn(size, inside, generator=draw).to(dtype) * 0.2
            layers[f"{stem}.{index}.{module}"] = LowRank(
                down, torch.randn(outside, size, generator=draw).to(dtype) * 0.2
            )
    return Adapter(layers, scale)


@torch.no_grad()
def by_hand(family: str, adapter: Adapter) -> Tensor:
    """Logits with the changes added to the weights themselves."""
    model = fresh(family)
    for name, pair in adapter.layers.items():
        module = model.get_submodule(name)
        change = adapter.scale * pair.up.float() @ pair.down.float()
        module.weight += change.T if isinstance(module, Conv1D) else change
    return model(TOKENS).logits


@torch.no_grad()
def by_peft(family: str, folder: Path) -> Tensor:
    """Logits of the folder as PEFT loads it; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return peft.PeftModel.from_pretrained(fresh(family), str(folder)).eval()(TOKENS).logits


RANKS: Mapping[str, Callable[[int], int]] = {"one": lambda index: 4, "many": lambda index: 1 + index % 4}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("scale", [2.0, 1 / 3, 0.7310585786300049])
def test_peft_loads_what_is_written(tmp_path: Path, family: str, ranks: str, scale: float) -> None:
    adapter = draw_adapter(family, RANKS[ranks], scale)
    write_adapter(tmp_path / "a", adapter, task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2")
    theirs = by_peft(family, tmp_path / "a")
    torch.testing.assert_close(theirs, by_hand(family, adapter), atol=1e-5, rtol=1e-5)
    assert (theirs - fresh(family)(TOKENS).logits).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_the_folder_of_a_version(tmp_path: Path, make_task: Callable[..., Any], family: str) -> None:
    """The bank itself sets what PEFT asks for, from the model's identity."""
    adapter = draw_adapter(family, RANKS["many"], 1.5)
    task = make_task(adapter=adapter)
    architecture = type(fresh(family)).__name__
    identity = {**task.prefix.model.to_json(), "architecture": architecture}
    prefix = type(task.prefix)(type(task.prefix.model).from_json(identity), task.prefix.keys, task.prefix.values, 3)
    published = Bank(tmp_path).publish(make_task(adapter=adapter, prefix=prefix))
    folder = tmp_path / "sst2/versions" / published.version / "adapter"
    torch.testing.assert_close(by_peft(family, folder), by_hand(family, adapter), atol=1e-5, rtol=1e-5)
    config = json.loads((folder / CONFIG).read_text())
    assert (config["task_type"], config["fan_in_fan_out"]) == ("CAUSAL_LM", family == "gpt2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ranks", RANKS)
def test_round_trip_keeps_every_bit(tmp_path: Path, dtype: torch.dtype, ranks: str) -> None:
    adapter = draw_adapter("llama", RANKS[ranks], 16 / 3, dtype)
    write_adapter(tmp_path / "a", adapter)
    found = read_adapter(tmp_path / "a")
    assert (found.scale, found.layers.keys()) == (adapter.scale, adapter.layers.keys())
    for name, pair in adapter.layers.items():
        for ours, theirs in ((found.layers[name].down, pair.down), (found.layers[name].up, pair.up)):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


def test_any_scale_comes_back_to_the_last_place(tmp_path: Path) -> None:
    for rank in (1, 3, 7, 24):
        for scale in (1 / 3, 0.1, 1e-30, 0.0, -2.5, math.pi):
            write_adapter(tmp_path / "a", Adapter({"a": LowRank(torch.ones(rank, 2), torch.ones(2, rank))}, scale))
            assert math.isclose(read_adapter(tmp_path / "a").scale, scale, rel_tol=1e-15)


def test_whole_alphas_are_written_whole(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", draw_adapter("llama", lambda index: 24, 16 / 24))
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (24, 16, {})
    assert isinstance(config["lora_alpha"], int)


def test_a_name_that_ends_another(tmp_path: Path) -> None:
    """PEFT matches the ends of names, so ``layers.1`` must not reach ``decoder.layers.1``."""
    pairs = {name: LowRank(torch.ones(rank, 2), torch.ones(2, rank)) for name, rank in (("b.a", 2), ("a", 3), ("c", 3))}
    write_adapter(tmp_path / "a", Adapter({**pairs, "d.b.a": LowRank(torch.ones(5, 2), torch.ones(2, 5))}, 2.0))
    found = read_adapter(tmp_path / "a")
    assert found.scale == 2.0
    assert {name: len(pair.down) for name, pair in found.layers.items()} == {"b.a": 2, "a": 3, "c": 3, "d.b.a": 5}


# What others write.


def saved_by_peft(folder: Path, family: str = "llama", **options: Any) -> Tensor:
    """A folder that PEFT saved, with random factors, and the logits of its model."""
    torch.manual_seed(5)
    config = peft.LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(fresh(family), config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.2)
            logits = model(TOKENS).logits
        model.save_pretrained(str(folder))
    return logits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_dropout": 0.5, "init_lora_weights": "gaussian"},
        {"use_rslora": True},
        {"rank_pattern": {"v_proj": 7}},
        {"alpha_pattern": {"v_proj": 11}},
        {
            "rank_pattern": {"layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {r"^model\.layers\.\d+\.self_attn.v_proj": 1},
        },
        {"rank_pattern": {"layers.1.*": 5}, "alpha_pattern": {".*v_proj$": 3, "v_proj": 9}, "use_rslora": True},
        {"layers_to_transform": [0, 2], "layers_pattern": "layers"},
        {"target_modules": r".*layers\.[02]\..*(q|down)_proj", "exclude_modules": ["model.layers.0.mlp.down_proj"]},
        {"lora_alpha": 0, "alpha_pattern": {"v_proj": 4}},
    ],
    ids=repr,
)
def test_what_peft_saves_is_read_exactly(tmp_path: Path, options: dict[str, Any]) -> None:
    expected = saved_by_peft(tmp_path, **options)
    torch.testing.assert_close(by_hand("llama", read_adapter(tmp_path)), expected, atol=1e-5, rtol=1e-5)


def test_what_peft_saves_of_gpt2_is_read_exactly(tmp_path: Path) -> None:
    expected = saved_by_peft(tmp_path, "gpt2", target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    torch.testing.assert_close(by_hand("gpt2", read_adapter(tmp_path)), expected, atol=1e-5, rtol=1e-5)


def test_differing_scales_of_half_precision_fold_without_rounding(tmp_path: Path) -> None:
    saved_by_peft(tmp_path, alpha_pattern={"v_proj": 11})
    save_file({name: tensor.bfloat16() for name, tensor in load_file(tmp_path / WEIGHTS).items()}, tmp_path / WEIGHTS)
    torch.testing.assert_close(
        by_hand("llama", read_adapter(tmp_path)), by_peft("llama", tmp_path), atol=1e-5, rtol=1e-5
    )


def test_what_is_read_is_written_again(tmp_path: Path) -> None:
    expected = saved_by_peft(tmp_path / "theirs", rank_pattern={"v_proj": 7}, alpha_pattern={"v_proj": 11})
    write_adapter(tmp_path / "ours", read_adapter(tmp_path / "theirs"))
    torch.testing.assert_close(by_peft("llama", tmp_path / "ours"), expected, atol=1e-5, rtol=1e-5)


def test_tensors_that_were_loaded_in_another_way(tmp_path: Path) -> None:
    expected = saved_by_peft(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    adapter = make_adapter(config, load_file(tmp_path / WEIGHTS), "theirs")
    torch.testing.assert_close(by_hand("llama", adapter), expected, atol=1e-5, rtol=1e-5)


# What is refused, by name.


def said(folder: Path) -> str:
    with pytest.raises(CorruptFile) as caught:
        read_adapter(folder)
    assert str(folder) in str(caught.value)
    assert str(caught.value).endswith(".")
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"use_dora": True}, "use_dora = true"),
        ({"bias": "lora_only"}, 'bias = "lora_only"'),
        ({"lora_bias": True}, "lora_bias = true"),
        ({"modules_to_save": ["lm_head"]}, 'modules_to_save = ["lm_head"]'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights = "pissa"'),
        ({"init_lora_weights": "olora"}, 'init_lora_weights = "olora"'),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"layer_replication": [(0, 2), (1, 3)]}, "layer_replication"),
        ({"alora_invocation_tokens": [1, 2], "task_type": "CAUSAL_LM"}, "alora_invocation_tokens"),
    ],
    ids=repr,
)
def test_other_things_that_peft_saves_are_refused(tmp_path: Path, options: dict[str, Any], field: str) -> None:
    saved_by_peft(tmp_path, **options)
    sentence = said(tmp_path)
    assert f"expected plain LoRA, found {field}" in sentence
    assert "merge the adapter into the model with PEFT" in sentence


def test_an_embedding_that_peft_saves_is_refused(tmp_path: Path) -> None:
    saved_by_peft(tmp_path, target_modules=["q_proj", "embed_tokens"])
    assert "embed_tokens" in said(tmp_path)


def test_another_method_that_peft_saves_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(fresh("llama"), peft.VeraConfig(r=4, target_modules=["q_proj"])).save_pretrained(
            str(tmp_path)
        )
    assert 'expected peft_type LORA, found "VERA"' in said(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "a", draw_adapter("llama", RANKS["many"], 1.5))
    return tmp_path / "a"


def configure(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text()) | fields
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": ...}, "expected peft_type LORA, found null"),
        ({"peft_type": "ADALORA"}, 'expected peft_type LORA, found "ADALORA"'),
        ({"r": ...}, "r must be a rank, 1 or more, found null"),
        ({"r": 0}, "r must be a rank, 1 or more, found 0"),
        ({"r": True}, "r must be a rank"),
        ({"lora_alpha": ...}, "lora_alpha must be a number, found null"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number"),
        ({"lora_alpha": 1e300}, "lora_alpha must be a number"),
        ({"rank_pattern": []}, "rank_pattern must be an object"),
        ({"rank_pattern": {"q_proj": 1.5}}, "rank_pattern must be an object"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern must be an object"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false"),
        ({"bias": "all"}, 'found bias = "all"'),
        ({"init_lora_weights": "loftq"}, 'found init_lora_weights = "loftq"'),
        ({"use_qalora": True}, "found use_qalora = true"),
        ({"target_parameters": ["mlp.experts"]}, "found target_parameters"),
        ({"use_bdlora": {"nblocks": 2}}, "found use_bdlora"),
        ({"a_later_idea": 3}, "found a_later_idea = 3"),
        ({"rank_pattern": {}}, "must have rank 1, found factors of rank"),
        ({"r": 9}, "must have rank 9, found factors of rank 1"),
        ({"alpha_pattern": {"(a+)+b": 2}}, "alpha_pattern must name modules"),
        ({"alpha_pattern": {".*.*.*": 2}}, "alpha_pattern must name modules"),
        ({"alpha_pattern": {"": 2}}, "alpha_pattern must name modules"),
        ({"alpha_pattern": {"[": 2}}, "alpha_pattern must name modules"),
    ],
    ids=repr,
)
def test_configurations_that_are_refused(folder: Path, fields: dict[str, Any], message: str) -> None:
    configure(folder, **fields)
    assert message in said(folder)


def test_fields_of_other_pefts_that_are_off_mean_nothing(folder: Path) -> None:
    before = read_adapter(folder).scale
    configure(folder, a_later_idea=None, another={}, third=False, loftq_config={"loftq_bits": 4}, use_dora=...)
    assert read_adapter(folder).scale == before


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(f"{FIRST}.lora_B.weight"), "q_proj needs lora_A and lora_B, found one"),
        (lambda t: t.update({f"{FIRST}.lora_B.weight": torch.zeros(64, 3)}), "q_proj must have factors [rank, in]"),
        (lambda t: t.update({f"{FIRST}.lora_A.weight": torch.zeros(1, 48, 1)}), "q_proj must have factors [rank, in]"),
        (lambda t: t.update({f"{FIRST}.lora_A.weight": torch.zeros(1, 0)}), "q_proj must have factors [rank, in]"),
        (
            lambda t: t.update({f"{FIRST}.lora_magnitude_vector": torch.zeros(64)}),
            "found base_model.model.model.layers.0",
        ),
        (lambda t: t.update({f"{FIRST}.lora_B.bias": torch.zeros(64)}), f"found {FIRST}.lora_B.bias"),
        (lambda t: t.update({"model.lm_head.weight": torch.zeros(2, 2)}), "found model.lm_head.weight"),
        (lambda t: t.update({"base_model.model..lora_A.weight": torch.zeros(2, 2)}), "found base_model.model..lora_A"),
        (lambda t: t.update({f"base_model.model.{'a' * 301}.lora_{s}.weight": torch.zeros(1, 1) for s in "AB"}), "no"),
        (lambda t: t[f"{FIRST}.lora_A.weight"].fill_(float("nan")), "must hold finite numbers"),
        (
            lambda t: t.update({f"{FIRST}.lora_A.weight": torch.zeros(1, 48, dtype=torch.int8)}),
            "floating point, found I8",
        ),
        (lambda t: t.clear(), "it changes no layer"),
    ],
)
def test_tensors_that_are_refused(folder: Path, edit: Callable[[dict[str, Tensor]], object], message: str) -> None:
    change(folder, edit)
    assert message in said(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated(folder: Path, keep: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:keep])
    assert "truncated" in said(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"r": 1, "r": 2}', b'{"lora_alpha": NaN}', b"\xff\xfe"])
def test_a_configuration_that_is_no_json(folder: Path, data: bytes) -> None:
    (folder / CONFIG).write_bytes(data)
    assert "expected" in said(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BankError, match=rf"{name}: expected .* found none that can be read"):
        read_adapter(folder)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was run",)


@pytest.mark.parametrize("name", ["adapter_model.bin", WEIGHTS])
def test_pickles_are_never_run(folder: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert "pickle, which is never loaded" in said(folder) or "found another format" in said(folder)


def test_writing_leaves_the_adapter_alone(tmp_path: Path) -> None:
    adapter = draw_adapter("llama", RANKS["one"], 2.0)
    before = copy.deepcopy(dict(adapter.layers))
    write_adapter(tmp_path / "a", adapter)
    assert all(torch.equal(before[name].up, pair.up) for name, pair in adapter.layers.items())
    with pytest.raises(UsageError, match="it changes no layer"):
        write_adapter(tmp_path / "b", Adapter({}))
    assert not (tmp_path / "b").exists()
