"""Soft tokens in and between the words of a template, learned directly or through a network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from foreword.core import Batch, Front, soft_id
from foreword.errors import UsageError
from foreword.prompts.init import InitialValues, from_text
from foreword.prompts.lower import lower
from foreword.prompts.registry import get_method
from foreword.prompts.reparam import BiLSTM
from tiny_models import CAUSAL, ENCODERS, tiny_model

# {soft:2} + "ab" + {soft:1}, of 5 soft tokens.
LEAD = (soft_id(0), soft_id(1), 97, 98, soft_id(2))


def initial_values(family: str, lead: tuple[int, ...] | None, words: str = "hello") -> InitialValues:
    start = from_text(tiny_model(family), words)(5, torch.Generator().manual_seed(3))
    return replace(start, constant_prefix=lead)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning"])
def test_soft_tokens_of_a_lead_stand_between_its_words(family, name):
    """What starts from the embeddings of real tokens is those tokens."""
    lm = tiny_model(family)
    front = get_method(name).encoder(lm, replace(initial_values(family, LEAD), bos="prefix")).front()
    ids = lm.tokenizer("hello").input_ids
    table = lm.model.get_input_embeddings()
    assert torch.equal(front.soft, table(torch.tensor([ids[0], ids[1], 97, 98, ids[2]])))
    assert torch.equal(front.inner_soft, table(torch.tensor(ids[3:])))
    assert front.bos == lower(lm, front).bos == "prefix"


@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning"])
def test_lowering_the_lead_changes_no_logit_of_rows_with_soft_tokens_inside(name):
    lm = tiny_model("mistral")
    front = get_method(name).encoder(lm, initial_values("mistral", LEAD)).front()
    served = Front(lower(lm, front), inner_soft=front.inner_soft)
    rows = [(70, 71, soft_id(0), 72, soft_id(1)), (soft_id(1), 80)]
    found, expected = (Batch.from_rows(each, rows) for each in (served, front))
    logits = lm.logits(found, torch.arange(7)), lm.logits(expected, torch.arange(5, 12))
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)


def test_the_words_of_a_lead_learn_nothing():
    lm = tiny_model("llama")
    learned = get_method("prompt-tuning").encoder(lm, initial_values("llama", LEAD))
    front = learned.front()
    (front.soft.square().sum() + front.inner_soft.square().sum()).backward()
    assert [tuple(p.shape) for p in learned.parameters()] == [(5, lm.identity.hidden_size)]
    assert torch.equal(learned.values.inputs.grad, 2 * learned.values.inputs)
    assert not any("lead" in name or "places" in name for name in learned.state_dict())


@pytest.mark.parametrize("lead", [None, LEAD, ()])
def test_all_soft_tokens_are_kept_for_transfer(lead):
    """In the order of the template: those of the lead, then those inside rows."""
    lm = tiny_model("llama")
    learned = get_method("p-tuning").encoder(lm, initial_values("llama", lead))
    ids = torch.tensor(lm.tokenizer("hello").input_ids)
    assert torch.equal(learned.soft_tokens(), lm.model.get_input_embeddings()(ids))
    assert not learned.soft_tokens().requires_grad


def test_without_a_lead_all_stand_in_front_of_a_causal_model():
    front = get_method("p-tuning").encoder(tiny_model("llama"), initial_values("llama", None)).front()
    assert len(front.soft) == 5
    assert front.inner_soft is None


def test_an_empty_lead_leaves_all_inside():
    lm = tiny_model("llama")
    front = get_method("p-tuning").encoder(lm, initial_values("llama", ())).front()
    assert front.soft is None
    assert len(front.inner_soft) == 5
    assert lower(lm, front).length == 0


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("lead", [None, ()])
def test_all_stand_inside_the_rows_of_an_encoder(family, lead):
    lm = tiny_model(family)
    front = get_method("p-tuning").encoder(lm, initial_values(family, lead)).front()
    assert (front.soft, len(front.inner_soft)) == (None, 5)
    ids = lm.tokenizer("hello").input_ids
    row = [70, 71, *map(soft_id, range(5)), 72]
    plain = [70, 71, *ids, 72]
    places = torch.arange(len(row))
    found, expected = (lm.logits(Batch.from_rows(f, [r]), places) for f, r in ((front, row), (Front(), plain)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "lead", "found"),
    [
        ("llama", (soft_id(1), soft_id(0)), r"\[1, 0\]"),
        ("llama", (97, soft_id(1)), r"\[1\]"),
        ("llama", tuple(map(soft_id, range(6))), r"\[0, 1, 2, 3, 4, 5\]"),
        ("bert", (soft_id(0),), r"\[0\]"),
    ],
)
def test_a_lead_names_the_first_soft_tokens_in_order(family, lead, found):
    with pytest.raises(UsageError, match=f"must name the first of 5 soft tokens in order.*got {found}"):
        get_method("prompt-tuning").encoder(tiny_model(family), initial_values(family, lead))


@pytest.mark.parametrize("network", ["lstm", "mlp"])
def test_a_network_starts_at_the_initial_values_and_moves_them(network):
    lm = tiny_model("llama")
    learned = get_method("p-tuning", encoder=network).encoder(lm, initial_values("llama", None))
    plain = get_method("prompt-tuning").encoder(lm, initial_values("llama", None))
    assert torch.equal(learned.front().soft, plain.front().soft)
    learned.front().soft.sum().backward()
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    optimizer.step()
    assert (learned.front().soft - plain.front().soft).abs().min() > 0.01


def test_an_lstm_lets_soft_tokens_know_of_each_other_both_ways():
    torch.manual_seed(0)
    layer, inputs = BiLSTM(6, 3), torch.randn(4, 6, requires_grad=True)
    for place in range(4):
        (gradient,) = torch.autograd.grad(layer(inputs)[place].sum(), inputs)
        assert gradient.abs().sum(1).min() > 0


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        # The tokens; then 2 layers of LSTM, each way 4 gates of hidden x (in + hidden) + 2 biases; then the MLP.
        ({}, 5 * 48 + 2 * 4 * 24 * (48 + 24 + 2) + 2 * 4 * 24 * (48 + 24 + 2) + 2 * (48 * 48 + 48)),
        ({"hidden": 7}, 5 * 48 + 2 * 4 * 7 * (48 + 7 + 2) + 2 * 4 * 7 * (14 + 7 + 2) + 14 * 14 + 14 + 14 * 48 + 48),
        ({"encoder": "mlp"}, 5 * 48 + 2 * (48 * 48 + 48)),
        ({"encoder": "mlp", "hidden": 7}, 5 * 48 + 48 * 7 + 7 + 7 * 48 + 48),
    ],
)
def test_how_many_numbers_a_network_learns(options, numbers):
    learned = get_method("p-tuning", **options).encoder(tiny_model("llama"), initial_values("llama", None))
    assert sum(parameter.numel() for parameter in learned.parameters()) == numbers
