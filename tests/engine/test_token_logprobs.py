"""Likelihoods of a prompt's own tokens equal a plain forward of Transformers over it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.reference import learned_prefix, random_ids, reference_logits, static_prefix
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import PromptTooLong, RequestError, UnsupportedModel
from foreword.models import LanguageModel
from foreword.text.prompt import Prompt
from tiny_models import tiny_model

FAMILIES = ("llama", "gpt2", "gemma3")


def by_transformers(family: str, prompt: Prompt) -> torch.Tensor:
    """``[T - 1]``: of every token but the first."""
    rows = reference_logits(family, Request(prompt.token_ids, prompt.prefix, prompt.prefix_length))[:-1].log_softmax(-1)
    return rows.gather(1, torch.tensor(prompt.token_ids[1:])[:, None])[:, 0]


def prompts(family: str) -> list[Prompt]:
    fronts = [
        (None, 0),
        (learned_prefix(family, 3), 3),
        (static_prefix(family, 21), 21),
        (static_prefix(family, 21), 5),
    ]
    return [
        Prompt(random_ids(length, 10 * index + length), prefix, used)
        for index, (prefix, used) in enumerate(fronts)
        for length in (2, 40, 1, 7)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("step_tokens", [8, 512])
def test_likelihoods_are_those_of_transformers(family, step_tokens):
    asked = prompts(family)
    with Engine(tiny_model(family), cache_bytes=1 << 20, step_tokens=step_tokens) as engine:
        found = engine.token_logprobs(asked)
        assert engine.token_logprobs([]) == []
    for prompt, own in zip(asked, found, strict=True):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, by_transformers(family, prompt), atol=1e-4, rtol=0)


def test_only_the_tokens_behind_the_named_places_are_measured():
    (prompt,) = [Prompt(random_ids(20, 1), learned_prefix("llama", 3), 3)]
    with Engine(tiny_model("llama"), cache_bytes=1 << 20) as engine:
        (found,) = engine.token_logprobs([replace(prompt, output_indices=(4, 5, 11))])
        for place in (19, 20):
            with pytest.raises(RequestError, match=f"no token of the vocabulary stands behind place {place}"):
                engine.token_logprobs([replace(prompt, output_indices=(4, place))])
    torch.testing.assert_close(found, by_transformers("llama", prompt)[[4, 5, 11]], atol=1e-4, rtol=0)


def test_a_soft_token_has_no_likelihood():
    soft = tiny_model("llama").model.get_input_embeddings().weight[[7, 8]]
    plain = Prompt((5, 7, 6, 9, 8, 11), None, 0)
    with Engine(tiny_model("llama"), cache_bytes=1 << 20) as engine:
        (found,) = engine.token_logprobs([replace(plain, token_ids=(5, -1, 6, 9, -2, 11), soft=soft)])
    torch.testing.assert_close(found, by_transformers("llama", plain)[[1, 2, 4]], atol=1e-4, rtol=0)


def test_no_more_logits_are_held_than_a_step_has_tokens(monkeypatch):
    seen: list[int] = []
    whole = LanguageModel.logits

    def logits_of(lm, batch, rows, **options):
        seen.append(len(rows))
        return whole(lm, batch, rows, **options)

    with Engine(tiny_model("llama"), cache_bytes=1 << 20, step_tokens=16) as engine:
        monkeypatch.setattr(LanguageModel, "logits", logits_of)
        (found,) = engine.token_logprobs([Prompt(random_ids(50, 1), None, 0)])
    assert seen == [16, 16, 16, 1]
    assert found.shape == (49,)


def test_prompts_that_can_never_be_measured():
    with Engine(tiny_model("llama"), cache_bytes=1 << 20, max_model_len=20) as engine:
        assert engine.token_logprobs([Prompt(random_ids(15, 0), learned_prefix("llama", 5), 5)])[0].shape == (14,)
        with pytest.raises(PromptTooLong):
            engine.token_logprobs([Prompt(random_ids(16, 0), learned_prefix("llama", 5), 5)])
        with pytest.raises(RequestError, match="empty"):
            engine.token_logprobs([Prompt((), None, 0)])
    encoder = Engine(tiny_model("bert"), cache_bytes=1 << 20, start=False)
    with pytest.raises(UnsupportedModel, match="sees what follows"):
        encoder.token_logprobs([Prompt((5, 6), None, 0)])
