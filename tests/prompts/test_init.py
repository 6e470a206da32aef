"""Where learning starts: the kinds of initial values, and that they are what they say."""

from __future__ import annotations

import pytest
import torch

from foreword.core import Front
from foreword.errors import UsageError
from foreword.models import LanguageModel
from foreword.prompts import init
from foreword.prompts.lower import lower, lower_tokens
from foreword.prompts.registry import METHODS, method
from foreword.prompts.soft import SoftPrompt
from models import CAUSAL, tiny_model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def soft(lm: LanguageModel, start: init.Start) -> torch.Tensor:
    return method("prompt-tuning").encoder(lm, start).front().soft


@pytest.mark.parametrize(
    ("length", "expected"), [(1, "o"), (5, "hello"), (3, "llo"), (7, "lohello"), (12, "lohellohello")]
)
def test_text_is_repeated_or_trimmed_so_that_its_end_is_last(length, expected):
    lm = tiny_model("llama")
    start = init.text(lm, "hello")(length, seeded())
    assert lm.tokenizer.decode(start.token_ids) == expected


def test_an_empty_text_is_refused():
    with pytest.raises(UsageError, match="give --init-text some words"):
        init.text(tiny_model("llama"), "")


@pytest.mark.parametrize("family", CAUSAL)
def test_prompt_tuning_from_text_gives_the_logits_of_the_text(family):
    """Gemma scales its embeddings on the way out; the initial values must be scaled too."""
    lm = tiny_model(family)
    ids = lm.tokenizer("Answer: ").input_ids
    found = lower(lm, Front(soft=soft(lm, init.text(lm, "Answer: ")(len(ids), seeded()))))
    for a, b in zip(found.keys, lower_tokens(lm, ids).keys, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", CAUSAL)
def test_p_tuning_v2_from_text_is_the_static_prefix_of_the_text(family):
    lm = tiny_model(family)
    learned = method("p-tuning-v2").encoder(lm, init.text(lm, "Answer: ")(8, seeded()))
    expected = lower_tokens(lm, lm.tokenizer("Answer: ").input_ids)
    for a, b in zip(lower(lm, learned).values, expected.values, strict=True):
        assert torch.equal(a, b)


def test_sampled_vocabulary_takes_no_special_tokens():
    lm = tiny_model("llama")
    start = init.sampled_vocabulary(lm)(2000, seeded())
    assert len(start.token_ids) == 2000
    assert set(start.token_ids) <= set(range(256))
    assert len(set(start.token_ids)) > 200


@pytest.mark.parametrize("family", CAUSAL)
def test_random_soft_tokens_are_spread_like_the_embeddings_that_the_model_uses(family):
    lm = tiny_model(family)
    used = lm.model.get_input_embeddings()(torch.arange(256)).std()
    assert float(soft(lm, init.random_values(500, seeded())).detach().std()) == pytest.approx(float(used), rel=0.1)


@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning-v2"])
def test_the_seed_decides(name):
    lm = tiny_model("llama")

    def values(seed: int) -> list[torch.Tensor]:
        return list(method(name).encoder(lm, init.random_values(4, seeded(seed))).parameters())

    assert all(torch.equal(a, b) for a, b in zip(values(3), values(3), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(values(3), values(4), strict=True))


def test_transfer_starts_from_the_tasks_own_values():
    lm = tiny_model("llama")
    prefix = lower_tokens(lm, range(60, 65))
    start = init.transfer(prefix)(5, seeded())
    learned = lower(lm, method("p-tuning-v2").encoder(lm, start))
    assert all(torch.equal(a, b) for a, b in zip(learned.keys, prefix.keys, strict=True))
    assert learned.token_ids is None
    assert learned.bos == prefix.bos  # whatever the prefix holds, the request must not bring again
    with pytest.raises(UsageError, match="has 5 virtual tokens, --length is 6"):
        init.transfer(prefix)(6, seeded())
    with pytest.raises(UsageError, match="prompt-tuning cannot start from another task's keys"):
        method("prompt-tuning").encoder(lm, start)


def test_soft_values_are_their_own_copy():
    lm = tiny_model("llama")
    learned = method("prompt-tuning").encoder(lm, init.text(lm, "hello")(5, seeded()))
    assert isinstance(learned, SoftPrompt)
    before = lm.model.get_input_embeddings().weight.clone()
    with torch.no_grad():
        learned.values.add_(1)
    assert torch.equal(lm.model.get_input_embeddings().weight, before)


def test_demonstrations_take_labels_in_turns_and_end_with_the_shortest():
    rows = [(f"{'x' * size} {label}", label) for label in "ab" for size in (3, 1, 2)]
    text = init.demonstrations(rows, budget=14)
    assert text == "xx b\n\nxx a\n\nx b\n\nx a\n\n"


def test_an_unknown_method_lists_them_all():
    with pytest.raises(UsageError, match=f"unknown method 'lora'; choose {', '.join(METHODS)}"):
        method("lora")
