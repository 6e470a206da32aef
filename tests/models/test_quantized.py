"""Quantized bases learn, or are refused; what a back end needs to be installed for skips without it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig
from typer.testing import CliRunner

from foreword.bank.bank import Bank
from foreword.cli.app import app
from foreword.core import Batch
from foreword.engine.engine import Engine
from foreword.errors import SettingError, UsageError
from foreword.evaluation.evaluate import evaluate
from foreword.models import LanguageModel, load_model
from foreword.models.packed_linear import pack_linear_layers
from foreword.models.quantization import quantization
from foreword.models.quantized_linear import QuantizedLinear, keep_gradients
from foreword.training.train import train
from tiny_models import byte_tokenizer, save_tiny
from training.small_data import recipe

# Rows of weights that torchao's groups of 32 divide.
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
METHODS = {"p-tuning-v2": {}, "prompt-tuning": {"lr": 0.02}, "lora": {"lr": 0.02, "length": None}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES), dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def check_learns(lm: LanguageModel, folder: Path, method: str) -> None:
    """The loss of held-out rows falls well below what the first step had."""
    folder.mkdir()
    train(lm, recipe(folder, method=method, max_steps=20, **METHODS[method]), say=lambda _: None)
    history = json.loads((folder / "run" / "history.json").read_text())["log"]
    first = next(row["loss"] for row in history if "loss" in row)
    assert min(row["eval_loss"] for row in history if "eval_loss" in row) < 0.7 * first, history


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_bitsandbytes_learns(bits, method, plain, tmp_path):
    pytest.importorskip("bitsandbytes")
    quantized = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=BitsAndBytesConfig(**{bits: True}), device_map={"": "cpu"}
    )
    quantized.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    lm = load_model(str(tmp_path / "model"), device="cpu")
    assert lm.quantization == f"bitsandbytes {bits[8]} bits"
    check_learns(lm, tmp_path / "data", method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_plain_checkpoint_learns_quantized(quantize, method, plain, tmp_path):
    pytest.importorskip("torchao")
    whole, lm = load_model(str(plain), device="cpu"), load_model(str(plain), device="cpu", quantize=quantize)
    assert lm.identity == whole.identity
    batch, rows = Batch((6,), (None,), (None,), torch.arange(40, 46)), torch.tensor([5])
    assert not lm.logits(batch, rows).equal(whole.logits(batch, rows))
    check_learns(lm, tmp_path / "data", method)


def test_a_task_says_what_it_was_learned_on_and_is_served_without(plain, tmp_path):
    pytest.importorskip("torchao")
    lm = load_model(str(plain), device="cpu", quantize="int8")
    result = train(lm, recipe(tmp_path, max_steps=20), name="rule", say=lambda _: None)
    bank = Bank(tmp_path / "bank")
    task = bank.publish(result.task)
    shown = CliRunner().invoke(app, ["bank", "show", "rule", "--bank", str(tmp_path / "bank")])
    assert re.search(r"made on +torchao Int8WeightOnly\n", shown.stdout)
    with Engine(load_model(str(plain), device="cpu")) as engine:
        report = evaluate(engine, task, str(tmp_path / "eval.jsonl"))
    assert report.metrics["accuracy"] > 0.9


def test_torchao_checkpoints_are_not_packed_anew(plain, tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    rounds_inputs = TorchAoConfig(torchao.Int8DynamicActivationInt8WeightConfig())
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=rounds_inputs).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    lm = load_model(str(tmp_path), device="cpu")
    assert lm.passes_gradients  # torchao's own layer has no backward here
    assert type(lm.model.model.layers[0].mlp.up_proj) is QuantizedLinear


def test_quantize_is_refused_where_it_cannot_be(plain, tmp_path, monkeypatch):
    with pytest.raises(SettingError, match="unknown quantization 'int2'; choose int8 or int4"):
        load_model(str(plain), quantize="int2")
    again = json.loads((plain / "config.json").read_text())
    again["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    for file in plain.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(again))
    with pytest.raises(UsageError, match=r"is quantized already \(gptq 4 bits\); leave out --quantize"):
        load_model(str(tmp_path), quantize="int8")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UsageError, match=r"--quantize needs torchao: pip install 'foreword\[quantize\]'"):
        load_model(str(plain), quantize="int8")


def test_the_flag_reaches_the_model_and_no_other_engine(plain, monkeypatch):
    args = ["--model", str(plain), "--quantize", "int3"]
    assert "int8 or int4" in str(CliRunner().invoke(app, ["generate", "hello", *args]).exception)
    vllm = CliRunner().invoke(app, ["serve", "--engine", "vllm", *args[:-1], "int8", "--print-command"])
    assert "--quantize is of the embedded engine" in str(vllm.exception)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    missing = CliRunner().invoke(app, ["generate", "hello", *args[:-1], "int8"])
    assert "pip install 'foreword[quantize]'" in str(missing.exception)


class Int8Weight(Tensor):
    """A weight in the manner of torchao's: whole numbers and a scale, multiplied without a backward."""

    @staticmethod
    def __new__(cls, plain: Tensor) -> Int8Weight:
        return Tensor._make_wrapper_subclass(cls, plain.shape, dtype=plain.dtype)

    def __init__(self, plain: Tensor) -> None:
        self.scale = plain.abs().max() / 127
        self.numbers = (plain / self.scale).round().to(torch.int8)

    def dequantize(self) -> Tensor:
        return self.numbers * self.scale

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            x, weight, bias = (*args, None)[:3] if not kwargs else (args[0], args[1], kwargs.get("bias"))
            return F.linear(x.detach(), weight.dequantize(), bias)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(str(function))


def test_a_librarys_own_weight_gets_a_backward():
    layer = nn.Linear(6, 4).requires_grad_(False)
    layer.weight = nn.Parameter(Int8Weight(layer.weight.data), requires_grad=False)
    x = torch.randn(3, 6, requires_grad=True)
    assert not layer(x).requires_grad
    keep_gradients(layer)
    output = layer(x)
    output.sum().backward()
    torch.testing.assert_close(output, F.linear(x, layer.weight.dequantize(), layer.bias))
    torch.testing.assert_close(x.grad, torch.ones(3, 4) @ layer.weight.dequantize())


def test_a_librarys_own_forward_gets_a_backward_and_is_not_packed():
    layer = nn.Linear(6, 4).requires_grad_(False)
    model = nn.Sequential(layer)
    layer.quantization_scheme = "8 bits"
    layer.forward = lambda x: F.linear((x * 16).round().detach() / 16, layer.weight, layer.bias)
    keep_gradients(model)
    x = torch.randn(3, 6, requires_grad=True)
    expected = F.linear((x * 16).round() / 16, layer.weight, layer.bias)
    torch.testing.assert_close(model(x), expected)
    layer.weight = nn.Parameter(layer.weight * 2, requires_grad=False)  # as by unpacking at the first forward
    model(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3, 4) @ layer.weight)
    assert pack_linear_layers(model, lambda: model(x)) == 0


def test_plain_weights_stay_as_they_are(tmp_path):
    lm = load_model(str(save_tiny("llama", tmp_path)))
    assert not any(isinstance(module, QuantizedLinear) for module in lm.model.modules())
    assert lm.quantization is None
    assert lm.origin == {}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes 8 bits"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}, None),
    ],
)
def test_the_kind_is_named(config, said):
    assert quantization(LlamaConfig(**SIZES, quantization_config=config)) == (said or "torchao Int8WeightOnly")


def test_shards_are_one_model(tmp_path):
    whole = load_model(str(save_tiny("llama", tmp_path / "whole")))
    sharded = load_model(str(save_tiny("llama", tmp_path / "shards", max_shard_size="40KB")))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert sharded.identity == whole.identity
    batch, rows = Batch((6,), (None,), (None,), torch.arange(40, 46)), torch.tensor([5])
    torch.testing.assert_close(sharded.logits(batch, rows), whole.logits(batch, rows))
