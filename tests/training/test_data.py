"""Examples are what serving would see, batches are fair, and a batch is no more than the sum of its rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.errors import DataError, TemplateError
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import random_values
from foreword.prompts.lower import lower
from foreword.prompts.registry import method
from foreword.text import request
from foreword.text.rows import Row
from foreword.text.template import Template
from foreword.text.verbalizer import Verbalizer
from foreword.training.data import Example, Reader, schedule
from foreword.training.losses import answer_loss, label_loss
from foreword.training.material import Material
from models import CAUSAL, tiny_model

WORDS = Verbalizer({"y": (" goat", " yes"), "n": (" gold",)})
ROWS = [
    Row({"text": text, "label": label}, f"data.jsonl line {number}")
    for number, (text, label) in enumerate([("short", "y"), ("a much longer one", "n"), ("x", "y"), ("same", "n")], 1)
]


def reader(template: str = "Q: {text}\nA:{mask}", verbalizer: Verbalizer | None = WORDS, length: int = 4) -> Reader:
    lm = tiny_model("llama")
    return Reader(lm, Material(Template.parse(template), verbalizer, "label", ROWS, ROWS), length)


def encoder(name: str, family: str = "llama") -> PromptEncoder:
    return method(name).encoder(tiny_model(family), random_values(4, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("rows", "batch", "steps"), [(10, 4, 50), (100, 8, 40), (7, 7, 9), (33, 16, 11), (1, 1, 5)])
def test_a_schedule_covers_all_examples_equally(rows, batch, steps):
    batches = schedule(list(range(rows)), batch, steps, seed=3)
    assert [len(places) for places in batches] == [batch] * steps
    counts = Counter(place for places in batches for place in places)
    assert max(counts.values()) - min(counts[place] for place in range(rows)) <= 1


def test_a_schedule_sorts_by_length_within_its_pools():
    sizes = [(i * 37) % 101 for i in range(640)]
    batches = schedule(sizes, 16, 40, seed=0)
    spreads = [max(sizes[i] for i in places) - min(sizes[i] for i in places) for places in batches]
    assert sum(spreads) / len(spreads) < 15  # the lengths go from 0 to 100
    assert [min(sizes[i] for i in places) for places in batches] != sorted(min(sizes[i] for i in p) for p in batches)


def test_a_batch_of_a_small_set_holds_no_example_twice():
    """Pools of several passes would sort copies of one example into one batch."""
    for places in schedule([5] * 32, 16, 60, seed=0):
        assert len(set(places)) == 16


def test_a_schedule_depends_on_the_seed_alone():
    sizes = list(range(50))
    assert schedule(sizes, 8, 20, seed=1) == schedule(sizes, 8, 20, seed=1) != schedule(sizes, 8, 20, seed=2)
    assert schedule(sizes, 8, 6, seed=1) != []


def test_examples_are_tokenized_as_serving_would():
    lm, examples = tiny_model("llama"), reader().read(ROWS)
    task = Task("t", "p-tuning-v2", lower(lm, encoder("p-tuning-v2")), template="Q: {text}\nA:{mask}")
    for row, example in zip(ROWS, examples, strict=True):
        assert request.from_fields(lm.tokenizer, task, row.values).token_ids == example.prompt
    assert [example.label for example in examples] == [0, 1, 0, 1]


def test_answers_end_with_the_end_of_text():
    made = reader("{text}={target:label}", None).read(ROWS)
    assert [example.target for example in made] == [(*map(ord_of, label), 256) for label in "ynyn"]


def ord_of(letter: str) -> int:
    return tiny_model("llama").tokenizer(letter).input_ids[0]


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning-v2"])
def test_gradients_of_a_batch_are_the_mean_of_its_examples(family, name):
    lm, learned = tiny_model(family), encoder(name, family)
    loss, examples = label_loss(reader().trie), reader().read(ROWS)
    together = torch.autograd.grad(loss(lm, learned.front(), examples), list(learned.parameters()))
    singly = [torch.autograd.grad(loss(lm, learned.front(), [e]), list(learned.parameters())) for e in examples]
    for found, parts in zip(together, zip(*singly, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(parts).mean(0), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning-v2"])
def test_gradients_of_answers_are_the_mean_over_their_tokens(name):
    lm, learned = tiny_model("llama"), encoder(name)
    examples = [Example((60, 61), target=(70, 71, 72)), Example((80,), target=(81,)), Example((90,) * 9, target=(7, 8))]
    together = torch.autograd.grad(answer_loss(lm, learned.front(), examples), list(learned.parameters()))
    singly = [torch.autograd.grad(answer_loss(lm, learned.front(), [e]), list(learned.parameters())) for e in examples]
    for found, parts in zip(together, zip(*singly, strict=True), strict=True):
        weighted = sum(len(e.target) * part for e, part in zip(examples, parts, strict=True)) / 6
        torch.testing.assert_close(found, weighted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning-v2"])
def test_the_loss_is_of_the_scores_that_serving_compares(name):
    lm, learned, made = tiny_model("llama"), encoder(name), reader()
    examples, trie = made.read(ROWS), made.trie
    task = Task("t", name, lower(lm, learned), template="Q: {text}\nA:{mask}")
    prompts = [request.from_fields(lm.tokenizer, task, row.values) for row in ROWS]
    with Engine(lm, cache_bytes=1 << 20) as engine:
        served = engine.score(prompts, trie).log_softmax(-1)
    expected = -sum(served[i, example.label] for i, example in enumerate(examples)) / len(examples)
    loss = label_loss(trie)(lm, learned.front(), examples)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)


def test_rows_that_do_not_fit_are_named():
    made = reader(length=220)
    with pytest.raises(DataError, match=r"data.jsonl line 2: the example has 2\d\d tokens .* 220 virtual tokens, the"):
        made.read([ROWS[0], replace(ROWS[1], values={**ROWS[1].values, "text": "x" * 30})])
    # The longest word counts: its last token must still have a position.
    room = 256 - 4 - len(" goat")
    text = "x" * (room - len("Q: \nA:"))
    assert made.lm.context == 256
    assert len(reader().read([replace(ROWS[0], values={"text": text, "label": "y"})])[0].prompt) == room
    with pytest.raises(DataError, match="the example has 257 tokens"):
        reader().read([replace(ROWS[0], values={"text": text + "x", "label": "y"})])


def test_what_a_template_cannot_ask_for():
    with pytest.raises(TemplateError, match="soft:N"):
        reader("{soft:3}{text}{mask}").read(ROWS)
    with pytest.raises(TemplateError, match=r"data.jsonl line 1: the text ' yes\?' behind the answer is never seen"):
        reader("{text}{mask} yes?").read(ROWS)
    with pytest.raises(DataError, match=r"data.jsonl line 1: the prompt is empty; put text in front of the answer"):
        reader("{text}{mask}").read([Row({"text": "", "label": "y"}, "data.jsonl line 1")])
