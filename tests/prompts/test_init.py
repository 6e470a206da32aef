"""Where learning starts: the kinds of initial values, and that they are what they say."""

from __future__ import annotations

import pytest
import torch

from foreword.core import Front, Task
from foreword.errors import UsageError
from foreword.models import LanguageModel
from foreword.prompts import init
from foreword.prompts.lower import lower, lower_tokens
from foreword.prompts.registry import get_method
from foreword.prompts.soft import SoftTokens
from foreword.text.demonstrations import demonstrations
from tiny_models import CAUSAL, tiny_model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def soft_tokens(lm: LanguageModel, start: init.InitialValues) -> torch.Tensor:
    return get_method("prompt-tuning").encoder(lm, start).front().soft


@pytest.mark.parametrize(
    ("length", "expected"), [(1, "o"), (5, "hello"), (3, "llo"), (7, "lohello"), (12, "lohellohello")]
)
def test_text_is_repeated_or_trimmed_so_that_its_end_is_last(length, expected):
    lm = tiny_model("llama")
    start = init.from_text(lm, "hello")(length, seeded())
    assert lm.tokenizer.decode(start.token_ids) == expected


@pytest.mark.parametrize(("length", "expected"), [(1, "h"), (3, "hel"), (5, "hello"), (7, "hellohe")])
def test_a_text_that_a_user_gives_keeps_its_beginning_as_in_peft(length, expected):
    lm = tiny_model("llama")
    start = init.from_text(lm, "hello", keep="first")(length, seeded())
    assert lm.tokenizer.decode(start.token_ids) == expected


def test_an_empty_text_is_refused():
    with pytest.raises(UsageError, match="give --init-text some words"):
        init.from_text(tiny_model("llama"), "")


@pytest.mark.parametrize("family", CAUSAL)
def test_prompt_tuning_from_text_gives_the_logits_of_the_text(family):
    """Gemma scales its embeddings on the way out; the initial values must be scaled too."""
    lm = tiny_model(family)
    ids = lm.tokenizer("Answer: ").input_ids
    found = lower(lm, Front(soft=soft_tokens(lm, init.from_text(lm, "Answer: ")(len(ids), seeded()))))
    for a, b in zip(found.keys, lower_tokens(lm, ids).keys, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", CAUSAL)
def test_p_tuning_v2_from_text_is_the_static_prefix_of_the_text(family):
    lm = tiny_model(family)
    learned = get_method("p-tuning-v2").encoder(lm, init.from_text(lm, "Answer: ")(8, seeded()))
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
@pytest.mark.parametrize("kind", [init.random_values, init.uniform_values])
def test_random_soft_tokens_are_spread_like_the_embeddings_that_the_model_uses(family, kind):
    lm = tiny_model(family)
    used = lm.model.get_input_embeddings()(torch.arange(256)).std()
    assert float(soft_tokens(lm, kind(500, seeded())).detach().std()) == pytest.approx(float(used), rel=0.1)


def test_uniform_values_have_an_end():
    lm = tiny_model("llama")
    used = float(lm.model.get_input_embeddings().weight.std())
    even, bell = (soft_tokens(lm, kind(500, seeded())).detach() for kind in (init.uniform_values, init.random_values))
    assert float(even.abs().max()) == pytest.approx(3**0.5 * used, rel=0.02)
    assert float(bell.abs().max()) > 3 * used


LEARNED = ("prompt-tuning", "p-tuning", "prefix-tuning", "p-tuning-v2", "lora-hybrid", "lora")


@pytest.mark.parametrize("name", LEARNED)
def test_the_seed_decides(name):
    lm, made = tiny_model("llama"), get_method(name)

    def values(seed: int) -> list[torch.Tensor]:
        start = init.random_values(min(made.length, 4), seeded(seed))
        return list(made.encoder(lm, start).state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(values(3), values(3), strict=True))
    drawn = [(a, b) for a, b in zip(values(3), values(4), strict=True) if a.any()]
    assert drawn
    assert not any(torch.equal(a, b) for a, b in drawn if a.is_floating_point())


def test_drawing_leaves_the_global_source_of_random_numbers_alone():
    lm = tiny_model("llama")
    torch.manual_seed(11)
    before = torch.get_rng_state()
    for name in LEARNED:
        get_method(name).encoder(lm, init.random_values(min(get_method(name).length, 4), seeded()))
    assert torch.equal(torch.get_rng_state(), before)


def task(lm: LanguageModel, name: str, length: int = 5) -> Task:
    """What a run would publish."""
    made = get_method(name)
    start = init.random_values(length if made.length else 0, seeded(8))
    encoder = made.encoder(lm, start)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.01)
    return Task("old", name, lower(lm, encoder), soft=encoder.soft_tokens(), adapter=encoder.front().adapter)


@pytest.mark.parametrize("name", ["p-tuning-v2", "prefix-tuning", "lora-hybrid"])
@pytest.mark.parametrize("old", ["prompt-tuning", "p-tuning", "p-tuning-v2"])
def test_keys_and_values_start_from_any_lowered_task(name, old):
    lm = tiny_model("llama")
    before = task(lm, old)
    learned = lower(lm, get_method(name).encoder(lm, init.from_task(before)(5, seeded())))
    for a, b in zip((*learned.keys, *learned.values), (*before.prefix.keys, *before.prefix.values), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning"])
@pytest.mark.parametrize("old", ["prompt-tuning", "p-tuning"])
def test_soft_tokens_start_from_those_of_another_task(name, old):
    lm = tiny_model("llama")
    before = task(lm, old)
    learned = get_method(name).encoder(lm, init.from_task(before, soft=True)(5, seeded()))
    assert torch.equal(learned.front().soft, before.soft)


def test_an_adapter_starts_from_that_of_another_task():
    lm = tiny_model("llama")
    before = task(lm, "lora-hybrid")
    for name, length in (("lora", 0), ("lora-hybrid", 5)):
        found = get_method(name).encoder(lm, init.from_task(before)(length, seeded())).front().adapter
        assert found.scale == before.adapter.scale
        for layer, pair in before.adapter.layers.items():
            assert torch.equal(found.layers[layer].down, pair.down)
            assert torch.equal(found.layers[layer].up, pair.up)


def test_the_beginning_of_text_token_is_where_the_other_task_has_it():
    lm = tiny_model("llama")
    static = Task("static", "static", lower_tokens(lm, range(60, 65)))
    learned = lower(lm, get_method("p-tuning-v2").encoder(lm, init.from_task(static)(5, seeded())))
    assert learned.token_ids is None
    assert learned.bos == "prefix"


def test_what_a_task_cannot_give_to_start_from():
    lm = tiny_model("llama")
    layers, nothing = task(lm, "p-tuning-v2"), Task("none", "manual", lower(lm, Front()))
    with pytest.raises(UsageError, match="has 5 virtual tokens, --length is 6; make them equal"):
        init.from_task(layers)(6, seeded())
    with pytest.raises(UsageError, match="has 5 virtual tokens, --length is 6; make them equal"):
        init.from_task(task(lm, "prompt-tuning"), soft=True)(6, seeded())
    with pytest.raises(UsageError, match=r"'old', has no soft tokens, only keys and values \(p-tuning-v2\)"):
        init.from_task(layers, soft=True)(5, seeded())
    with pytest.raises(UsageError, match="soft tokens cannot start from another task's keys and values"):
        get_method("prompt-tuning").encoder(lm, init.from_task(layers)(5, seeded()))
    with pytest.raises(UsageError, match="there is no virtual token to learn"):
        get_method("p-tuning-v2").encoder(lm, init.from_task(nothing)(0, seeded()))
    with pytest.raises(UsageError, match="the task to start from has no adapter"):
        get_method("lora").encoder(lm, init.from_task(layers)(0, seeded()))


def test_soft_values_are_their_own_copy():
    lm = tiny_model("llama")
    learned = get_method("prompt-tuning").encoder(lm, init.from_text(lm, "hello")(5, seeded()))
    assert isinstance(learned, SoftTokens)
    before, kept = lm.model.get_input_embeddings().weight.clone(), learned.soft_tokens()
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter.add_(1)
    assert torch.equal(lm.model.get_input_embeddings().weight, before)
    assert torch.equal(learned.soft_tokens(), kept + 1)


def test_demonstrations_take_labels_in_turns_and_end_with_the_shortest():
    rows = [(f"{'x' * size} {label}", label) for label in "ab" for size in (3, 1, 2)]
    text = demonstrations(rows, budget=14)
    assert text == "xx b\n\nxx a\n\nx b\n\nx a\n\n"
