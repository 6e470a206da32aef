"""A real server on a free port, in a thread, and the small tasks that tests publish."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import openai
import torch

from foreword.bank.bank import Bank
from foreword.core import Kind, KVPrefix, LayerShape, ModelIdentity, Task
from foreword.engine.engine import Engine
from foreword.models import LanguageModel
from foreword.prompts.lower import lower_tokens
from foreword.text.task_prompts import static_token_ids
from tiny_models import byte_tokenizer, tiny_model

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPT_TEXT = "Once upon a time "
SYSTEM_TEXT = "Be kind."


@dataclass(frozen=True, eq=False)
class RunningServer:
    """A running server with its model, engine and bank."""

    url: str
    lm: LanguageModel
    engine: Engine
    bank: Bank

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def chat_model() -> LanguageModel:
    """The tiny Llama with a chat template; a tokenizer of its own, since the tiny model is shared."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    return dataclasses.replace(tiny_model("llama"), tokenizer=tokenizer)


def learned_prefix(model: ModelIdentity, length: int = 5, seed: int = 0) -> KVPrefix:
    generator = torch.Generator().manual_seed(seed)
    keys = tuple(torch.randn(s.kv_heads, length, s.key_dim, generator=generator) * 2 for s in model.layers)
    values = tuple(torch.randn(s.kv_heads, length, s.value_dim, generator=generator) * 2 for s in model.layers)
    return KVPrefix(model, keys, values, offset=length)


def learned_task(lm: LanguageModel, name: str, seed: int = 0) -> Task:
    return Task(name, "p-tuning-v2", learned_prefix(lm.identity, seed=seed))


def static_task(lm: LanguageModel, name: str, kind: Kind, text: str) -> Task:
    prefix = lower_tokens(lm, static_token_ids(lm.tokenizer, kind, text))
    return Task(name, "static", prefix, kind=kind, text=text)


def label_task(lm: LanguageModel, name: str = "mood", template: str = "{text}\nMood:{mask}") -> Task:
    return Task(
        name,
        "p-tuning-v2",
        learned_prefix(lm.identity, seed=7),
        template=template,
        verbalizer={"good": (" yes", " fine"), "bad": (" no",)},
    )


def foreign_task(name: str) -> Task:
    """A task of another model."""
    identity = ModelIdentity("OtherForCausalLM", 8, 100, (LayerShape(1, 4, 4),), "null", "a" * 64, "b" * 64)
    return Task(name, "p-tuning-v2", learned_prefix(identity))


def publish_all(bank: Bank, lm: LanguageModel) -> None:
    bank.publish(learned_task(lm, "poet"))
    bank.publish(static_task(lm, "story", "prompt", PROMPT_TEXT))
    bank.publish(static_task(lm, "kind", "system", SYSTEM_TEXT))
    bank.publish(label_task(lm))
    bank.publish(label_task(lm, "pair", "{first} / {second}:{mask}"))
    bank.publish(dataclasses.replace(learned_task(lm, "rhyme", seed=2), template="{text} rhymes with{target:word}"))
    bank.publish(dataclasses.replace(learned_task(lm, "link", seed=3), template="{first} -> {second}:{target:word}"))
    bank.publish(foreign_task("foreign"))
