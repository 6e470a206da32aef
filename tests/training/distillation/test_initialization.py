"""Initial values: rotated keys give the same logits, and the tokens attended most are chosen."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from foreword.core import Batch, Front
from foreword.errors import UnsupportedModel
from foreword.training.distillation import initialization
from foreword.training.distillation.document import Document
from foreword.training.distillation.recipe import INITS
from tiny_models import tiny_model
from training.distillation.small_document import TEXT, chat_model, dialog

CONVERSATIONS = [("what does it cost?", " 9 coins"), ("when", " Monday")]


def source(length: int, family: str = "llama", chunk: int | None = None) -> initialization.InitSource:
    lm = chat_model(family)
    found = Document.prefill(lm, "prompt", TEXT, chunk)
    count = len(found.chunks)
    conversations = [
        dialog(lm, question, answer, number % count) for number, (question, answer) in enumerate(CONVERSATIONS)
    ]
    return initialization.InitSource(lm, found, conversations, length)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox"])
def test_rotated_keys_give_the_logits_of_the_text(family):
    """All tokens of the text, as if the request stood at 8 and not behind it: rotary positions are relative."""
    init_source = source(8, family)
    lm, prefix = init_source.lm, init_source.document.chunks[0].prefix
    rotated = init_source.gather(init_source.all_heads(torch.arange(prefix.length)))
    assert rotated.offset == 8 != prefix.length
    row = tuple(lm.tokenizer.encode("what is it?", add_special_tokens=False))
    places = torch.arange(len(row))
    with torch.no_grad():
        found, expected = (lm.logits(Batch.from_rows(Front(each), [row]), places) for each in (rotated, prefix))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(rotated.keys[0], prefix.keys[0])


@pytest.mark.parametrize("name", initialization.INITIALIZERS)
@pytest.mark.parametrize("chunk", [None, 30])
def test_initial_values_begin_with_the_first_token_and_have_the_length(name, chunk):
    init_source = source(6, chunk=chunk)
    prefix = initialization.INITIALIZERS[name](init_source)
    assert (prefix.length, prefix.offset, prefix.bos) == (6, 6, init_source.document.chunks[0].prefix.bos)
    whole = init_source.document.chunks[0].prefix
    for found, expected in zip(prefix.values, whole.values, strict=True):
        assert torch.equal(found[:, 0], expected[:, 0])


def test_even_takes_tokens_from_every_chunk():
    init_source = source(8, chunk=20)
    assert len(init_source.document.chunks) >= 4
    values = initialization.evenly_spaced_tokens(init_source).values[0]
    parts = [chunk.prefix.values[0] for chunk in init_source.document.chunks]
    owners = {n for slot in values[0] for n, part in enumerate(parts) if (part[0] == slot).all(-1).any()}
    assert owners == set(range(len(parts)))


def test_attention_is_that_of_transformers_over_the_joined_text():
    init_source = source(6)
    lm, text = init_source.lm, init_source.document.chunks[0].prefix.length
    model = copy.deepcopy(lm.model)
    model.set_attn_implementation("eager")
    expected = [torch.zeros(2, text) for _ in lm.identity.layers]
    for each in init_source.conversations:
        ids = [*lm.tokenizer.encode(TEXT, add_special_tokens=False), *each.prompt, *each.answer[:-1]]
        weights = model(torch.tensor([ids]), output_attentions=True).attentions
        for layer, weight in enumerate(weights):
            expected[layer] += weight[0, :, text:, :text].sum(1).view(2, 2, text).sum(1)
    for found, right in zip(
        initialization.attention_mass(lm, init_source.document, init_source.conversations), expected, strict=True
    ):
        torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-4)


def test_a_sliding_window_hides_what_has_left_it():
    lm = chat_model("gemma3")
    found = initialization.attention_mass(
        lm, Document.prefill(lm, "prompt", TEXT), [dialog(lm, "what does it cost?", " 9")]
    )
    windows = [layer for layer, mass in enumerate(found) if float(mass[:, :40].sum()) == 0]
    assert windows == [0, 2]


def test_each_head_has_the_tokens_that_it_attends_most():
    init_source = source(6)
    masses = initialization.attention_mass(init_source.lm, init_source.document, init_source.conversations)
    prefix, whole = initialization.most_attended_tokens(init_source), init_source.document.chunks[0].prefix
    for layer, mass in enumerate(masses):
        for head in range(2):
            top = {0, *mass[head, 1:].topk(5).indices.add(1).tolist()}
            assert torch.equal(prefix.values[layer][head], whole.values[layer][head, sorted(top)])


def test_refused_by_name_where_keys_must_move():
    lm = replace(tiny_model("gpt2"), context=None)
    init_source = initialization.InitSource(lm, Document.prefill(lm, "prompt", TEXT), [dialog(lm, "what", " 9")], 6)
    for initializer in initialization.INITIALIZERS.values():
        with pytest.raises(UnsupportedModel, match="tiny-gpt2 has learned absolute positions, so keys cannot move"):
            initializer(init_source)


def test_the_recipe_names_every_initializer():
    assert set(INITS) == {"auto", *initialization.INITIALIZERS}
