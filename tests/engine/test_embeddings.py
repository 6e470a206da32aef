"""Embeddings equal hidden states of plain Transformers, pooled and divided by their length."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import DynamicCache

from engine.reference import learned_prefix, random_ids, static_prefix, stock_model
from foreword import attention
from foreword.core import KVPrefix, Pooling
from foreword.engine.engine import Engine
from foreword.errors import PromptTooLong, RequestError, UnsupportedModel
from foreword.text.prompt import Prompt
from tiny_encoder_decoders import tiny_encoder_decoder
from tiny_models import CAUSAL, tiny_model

POOLINGS: tuple[Pooling, ...] = ("last", "mean", "cls")


def prompts(family: str) -> list[Prompt]:
    uses: list[tuple[KVPrefix | None, int]] = [
        (None, 0),
        (learned_prefix(family, 3), 3),
        (static_prefix(family, 21), 21),
        (static_prefix(family, 21), 5),
    ]
    return [Prompt(random_ids(length, index), *use) for index, use in enumerate(uses) for length in (1, 13, 6)]


def pooled(states: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    vector = {"last": states[-1], "mean": states.mean(0), "cls": states[0]}[pooling]
    return vector / vector.norm()


def reference(family: str, prompt: Prompt, pooling: Pooling) -> torch.Tensor:
    """By Transformers alone: behind the joined text, or behind ``past_key_values``."""
    body, prefix, length = stock_model(family).base_model, prompt.prefix, prompt.prefix_length
    if prefix is not None and prefix.token_ids is not None:
        joined = torch.tensor([[*prefix.token_ids[:length], *prompt.token_ids]])
        return pooled(body(input_ids=joined).last_hidden_state[0, length:], pooling)
    past = DynamicCache(config=stock_model(family).config)
    for layer in range(len(prefix.keys) if prefix is not None else 0):
        past.update(prefix.keys[layer][None], prefix.values[layer][None], layer)  # type: ignore[union-attr]
    positions = torch.arange(length, length + len(prompt.token_ids))[None]
    ids = torch.tensor([prompt.token_ids])
    return pooled(body(input_ids=ids, position_ids=positions, past_key_values=past).last_hidden_state[0], pooling)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings_equal_plain_transformers(family: str, pooling: Pooling) -> None:
    asked = prompts(family)
    with Engine(tiny_model(family), cache_bytes=1 << 20, step_tokens=20) as engine:
        found = engine.embed(asked, pooling)
    expected = torch.stack([reference(family, prompt, pooling) for prompt in asked])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings_of_an_encoder(pooling: Pooling) -> None:
    lm = tiny_model("bert")
    ids = random_ids(9, 1)
    with Engine(lm, cache_bytes=1 << 20) as engine:
        found = engine.embed([Prompt(ids, None, 0)], pooling)
    lm.model.set_attn_implementation("eager")
    try:
        states = lm.model.bert(input_ids=torch.tensor([ids])).last_hidden_state[0]
    finally:
        lm.model.set_attn_implementation(attention.ATTN_IMPLEMENTATION)
    torch.testing.assert_close(found[0], pooled(states, pooling).detach(), atol=1e-5, rtol=0)


def test_soft_tokens_are_seen_and_not_pooled() -> None:
    lm = tiny_model("llama")
    generator = torch.Generator().manual_seed(0)
    soft = 0.1 * torch.randn(2, lm.identity.hidden_size, generator=generator)
    ids = random_ids(4, 1)
    with Engine(lm, cache_bytes=1 << 20) as engine:
        found = engine.embed([Prompt((-1, -2, *ids), None, 0, soft=soft)], "mean")
    table = stock_model("llama").get_input_embeddings()
    embeds = torch.cat([soft, table(torch.tensor(ids))])[None]
    states = stock_model("llama").base_model(inputs_embeds=embeds).last_hidden_state[0, 2:]
    torch.testing.assert_close(found[0], pooled(states, "mean"), atol=1e-5, rtol=0)


def test_without_a_pooling_the_models_own_is_used() -> None:
    asked = [Prompt(random_ids(5, 2), None, 0)]
    with Engine(tiny_model("llama"), cache_bytes=1 << 20) as engine:
        assert torch.equal(engine.embed(asked), engine.embed(asked, "last"))
        assert engine.embed([]).shape == (0, tiny_model("llama").identity.hidden_size)
    with Engine(tiny_model("bert"), cache_bytes=1 << 20) as engine:
        assert torch.equal(engine.embed(asked), engine.embed(asked, "mean"))


def test_a_pooling_that_is_not_known_must_be_named() -> None:
    lm = dataclasses.replace(tiny_model("bert"), pooling=None)
    with Engine(lm, cache_bytes=1 << 20) as engine:
        with pytest.raises(RequestError, match="name the pooling that you want"):
            engine.embed([Prompt((1, 2), None, 0)])
        assert engine.embed([Prompt((1, 2), None, 0)], "cls").shape[0] == 1


def test_a_text_beyond_the_context_is_refused() -> None:
    with (
        Engine(tiny_model("llama"), cache_bytes=1 << 20) as engine,
        pytest.raises(PromptTooLong, match="more than the context of 256"),
    ):
        engine.embed([Prompt(random_ids(257, 1), None, 0)])


def test_an_encoder_decoder_embeds_nothing() -> None:
    engine = Engine(tiny_encoder_decoder("t5"))
    with pytest.raises(UnsupportedModel, match="use an encoder"):
        engine.embed([Prompt((1, 2), None, 0)])
