"""Small models in folders, as vLLM and llama.cpp take them, each with a bank of tasks and requests behind them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen2Config, Qwen3Config

from foreword.bank.bank import Bank
from foreword.core import Front, KVPrefix, SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import EngineProtocol, Request
from foreword.models import LanguageModel, load_model
from foreword.models.model_info import model_info
from foreword.prompts.lower import lower, lower_tokens
from foreword.text.task_prompts import from_ids
from tiny_models import VOCABULARY, byte_tokenizer

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "eos_token_id": 256,
    "bos_token_id": None,
    "pad_token_id": 257,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**{**SIZES, "hidden_size": 128}),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES,
        sliding_window=48,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=32,
    ),
}
# Shorter and longer than a block of 32 or 128, whole blocks and all but.
LENGTHS = (1, 2, 5, 16, 31, 32, 33, 48, 63, 64, 65, 96, 100, 127, 128, 129, 200, 256, 299, 300)
CACHE_BYTES = 1 << 26


def save_model(family: str, folder: Path) -> Path:
    """A tiny random model folder, spread wide enough that a lost prefix shows."""
    torch.manual_seed(sum(map(ord, family)))
    model = AutoModelForCausalLM.from_config(CONFIGS[family]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model, and a bank of tasks for it.

    Attributes:
        folder: the model's files.
        lm: the model in this process.
        bank: with learned, lowered and static prefixes, by turns.
        tasks: of the bank.
    """

    folder: str
    lm: LanguageModel
    bank: Bank
    tasks: tuple[Task, ...]

    def requests(self, count: int, seed: int = 0, tokens: int = 12) -> list[Request]:
        """Requests behind all tasks by turns, and some behind none; greedy, and on past the end of text."""
        draw = random.Random(seed)
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
        words = range(min(250, self.lm.identity.vocab_size))
        choices = [*self.tasks, None]
        found = []
        for index in range(count):
            ids = [draw.choice(words) for _ in range(draw.randint(1, 40))]
            found.append(Request.from_prompt(from_ids(choices[index % len(choices)], ids), sampling))
        return found

    def expected(self, requests: Sequence[Request]) -> list[list[int]]:
        """The embedded engine's answers."""
        with Engine(self.lm, cache_bytes=CACHE_BYTES) as engine:
            return tokens(engine, requests)

    def publish(self, name: str, seed: int, length: int = 64) -> Task:
        """Publish a learned task, or a new version of one."""
        return self.bank.load(self.bank.publish(Task(name, "p-tuning-v2", learned(self.lm, length, seed))).ref)


def make_served_model(folder: Path | str | None, place: Path, lengths: Sequence[int] = LENGTHS) -> ServedModel:
    """Publish a prefix of every length.

    Args:
        folder: of the model; the built-in one if ``None``.
        place: of the bank.
        lengths: of the prefixes.
    """
    name = str(folder) if folder is not None else None
    lm = load_model(name, dtype="float32", progress=lambda line: None)
    bank = Bank(place)
    makers = (learned, lowered, static)
    for index, length in enumerate(lengths):
        prefix = makers[index % len(makers)](lm, length, index)
        bank.publish(Task(f"t{index}", "test", prefix))
    tasks = tuple(bank.load(f"t{index}") for index in range(len(lengths)))
    return ServedModel(str(model_info(name).folder), lm, bank, tasks)


def learned(lm: LanguageModel, length: int, seed: int) -> KVPrefix:
    """A learned prefix: the keys and values of a text, with noise."""
    generator = torch.Generator().manual_seed(seed)
    real = replace(lower_tokens(lm, some_ids(length, seed)), token_ids=None, bos="none")

    def add_noise(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 0.3 * torch.randn(tensor.shape, generator=generator) * float(tensor.std(correction=0) + 0.1)

    return replace(real, keys=tuple(map(add_noise, real.keys)), values=tuple(map(add_noise, real.values)))


def lowered(lm: LanguageModel, length: int, seed: int) -> KVPrefix:
    """A prefix lowered from soft tokens, which have no ids."""
    width = lm.identity.hidden_size
    spread = float(lm.model.get_input_embeddings().weight.std())
    soft = torch.randn(length, width, generator=torch.Generator().manual_seed(seed)) * spread
    return lower(lm, Front(soft=soft))


def static(lm: LanguageModel, length: int, seed: int) -> KVPrefix:
    """The prefix of a text."""
    return lower_tokens(lm, some_ids(length, seed))


def some_ids(length: int, seed: int) -> list[int]:
    draw = random.Random(1000 + seed)
    return [draw.randrange(250) for _ in range(length)]


def tokens(engine: EngineProtocol, requests: Sequence[Request]) -> list[list[int]]:
    streams = [engine.submit(request) for request in requests]
    return [[token for chunk in stream for token in token_ids(chunk)] for stream in streams]


def token_ids(chunk) -> tuple[int, ...]:
    assert chunk.error is None, chunk.error
    return chunk.token_ids
