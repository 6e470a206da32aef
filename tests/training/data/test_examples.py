"""Examples are what serving would see, batches are fair, and a batch is no more than the sum of its rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch

from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.errors import DataError, RequestError, TemplateError
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import random_values
from foreword.prompts.lower import lower
from foreword.prompts.registry import get_method
from foreword.text import task_prompts
from foreword.text.encoded_example import EncodedExample, ExampleEncoder
from foreword.text.label_scorers import LabelScorer, word_scorer
from foreword.text.rows import Row
from foreword.text.template import Template
from foreword.text.verbalizer import Verbalizer
from foreword.training.data.examples import Example, ExampleBuilder, batch_schedule
from foreword.training.data.training_data import TrainingData
from foreword.training.modules.losses import AnswerLoss, LabelLoss, mean_loss
from tiny_models import CAUSAL, tiny_model

WORDS = Verbalizer({"y": (" goat", " yes"), "n": (" gold",)})
ROWS = [
    Row({"text": text, "label": label}, f"data.jsonl line {number}")
    for number, (text, label) in enumerate([("short", "y"), ("a much longer one", "n"), ("x", "y"), ("same", "n")], 1)
]


def builder(
    template: str = "Q: {text}\nA:{mask}", verbalizer: Verbalizer | None = WORDS, length: int = 4
) -> ExampleBuilder:
    lm = tiny_model("llama")
    data = TrainingData((Template.parse(template),), verbalizer, (), False, "label", ROWS, ROWS)
    label_tokens = scorer(template, verbalizer).max_extra_tokens if verbalizer is not None else 0
    return ExampleBuilder(lm, data, ExampleEncoder(lm.tokenizer), length, label_tokens)


def scorer(template: str = "Q: {text}\nA:{mask}", verbalizer: Verbalizer = WORDS) -> LabelScorer:
    return word_scorer(tiny_model("llama").tokenizer, verbalizer, Template.parse(template).before_answer, causal=True)


def asked(*token_ids: int, target: tuple[int, ...] = ()) -> Example:
    return Example(EncodedExample(token_ids, (len(token_ids) - 1,)), target=target)


def encoder(name: str, family: str = "llama") -> PromptEncoder:
    return get_method(name).encoder(tiny_model(family), random_values(4, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(("rows", "batch", "steps"), [(10, 4, 50), (100, 8, 40), (7, 7, 9), (33, 16, 11), (1, 1, 5)])
def test_a_schedule_covers_all_examples_equally(rows, batch, steps):
    batches = batch_schedule(list(range(rows)), batch, steps, seed=3)
    assert [len(items) for items in batches] == [batch] * steps
    counts = Counter(item.index for batch in batches for item in batch)
    assert max(counts.values()) - min(counts[index] for index in range(rows)) <= 1
    epochs = sorted((item.index, item.epoch) for batch in batches for item in batch)
    assert epochs == sorted((index, epoch) for index, count in counts.items() for epoch in range(count))


def test_a_schedule_sorts_by_length_within_its_pools():
    sizes = [(i * 37) % 101 for i in range(640)]
    batches = batch_schedule(sizes, 16, 40, seed=0)
    lengths = [[sizes[item.index] for item in batch] for batch in batches]
    assert sum(max(found) - min(found) for found in lengths) / len(lengths) < 15  # they go from 0 to 100
    assert [min(found) for found in lengths] != sorted(min(found) for found in lengths)


def test_a_batch_of_a_small_set_holds_no_example_twice():
    """Pools of several passes would sort copies of one example into one batch."""
    for batch in batch_schedule([5] * 32, 16, 60, seed=0):
        assert len({item.index for item in batch}) == 16


def test_a_schedule_depends_on_the_seed_alone():
    sizes = list(range(50))
    assert (
        batch_schedule(sizes, 8, 20, seed=1)
        == batch_schedule(sizes, 8, 20, seed=1)
        != batch_schedule(sizes, 8, 20, seed=2)
    )
    assert batch_schedule(sizes, 8, 6, seed=1) != []


def test_examples_are_tokenized_as_serving_would():
    lm, examples = tiny_model("llama"), builder().build(ROWS)
    task = Task("t", "p-tuning-v2", lower(lm, encoder("p-tuning-v2")), template="Q: {text}\nA:{mask}")
    for row, example in zip(ROWS, examples, strict=True):
        assert task_prompts.from_fields(lm.tokenizer, task, row.values).token_ids == example.prompt_ids
    assert [example.labels for example in examples] == [(0,), (1,), (0,), (1,)]


def test_answers_end_with_the_end_of_text():
    made = builder("{text}={target:label}", None).build(ROWS)
    assert [example.target for example in made] == [(*map(ord_of, label), 256) for label in "ynyn"]


def ord_of(letter: str) -> int:
    return tiny_model("llama").tokenizer(letter).input_ids[0]


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning-v2"])
def test_gradients_of_a_batch_are_the_mean_of_its_examples(family, name):
    lm, learned = tiny_model(family), encoder(name, family)
    loss, examples = partial(mean_loss, LabelLoss(scorer())), builder().build(ROWS)
    together = torch.autograd.grad(loss(lm, learned.front(), examples), list(learned.parameters()))
    singly = [torch.autograd.grad(loss(lm, learned.front(), [e]), list(learned.parameters())) for e in examples]
    for found, parts in zip(together, zip(*singly, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(parts).mean(0), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning-v2"])
def test_gradients_of_answers_are_the_mean_over_their_tokens(name):
    lm, learned = tiny_model("llama"), encoder(name)
    examples = [asked(60, 61, target=(70, 71, 72)), asked(80, target=(81,)), asked(*(90,) * 9, target=(7, 8))]
    answer_loss = partial(mean_loss, AnswerLoss())
    together = torch.autograd.grad(answer_loss(lm, learned.front(), examples), list(learned.parameters()))
    singly = [torch.autograd.grad(answer_loss(lm, learned.front(), [e]), list(learned.parameters())) for e in examples]
    for found, parts in zip(together, zip(*singly, strict=True), strict=True):
        weighted = sum(len(e.target) * part for e, part in zip(examples, parts, strict=True)) / 6
        torch.testing.assert_close(found, weighted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["prompt-tuning", "p-tuning-v2"])
def test_the_loss_is_of_the_scores_that_serving_compares(name):
    lm, learned, made = tiny_model("llama"), encoder(name), builder()
    examples = made.build(ROWS)
    task = Task("t", name, lower(lm, learned), template="Q: {text}\nA:{mask}")
    prompts = [task_prompts.from_fields(lm.tokenizer, task, row.values) for row in ROWS]
    with Engine(lm, cache_bytes=1 << 20) as engine:
        served = engine.score(prompts, scorer()).log_softmax(-1)
    expected = -sum(served[i, example.labels[0]] for i, example in enumerate(examples)) / len(examples)
    loss = mean_loss(LabelLoss(scorer()), lm, learned.front(), examples)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)


def test_rows_that_do_not_fit_are_named():
    made = builder(length=220)
    with pytest.raises(DataError, match=r"data.jsonl line 2: the example has 2\d\d tokens .* 220 virtual tokens, the"):
        made.build([ROWS[0], replace(ROWS[1], values={**ROWS[1].values, "text": "x" * 30})])
    # The longest word counts: its last token must still have a position.
    room = 256 - 4 - len(" goat")
    text = "x" * (room - len("Q: \nA:"))
    assert made.lm.context == 256
    assert len(builder().build([replace(ROWS[0], values={"text": text, "label": "y"})])[0].prompt_ids) == room
    with pytest.raises(DataError, match="the example has 257 tokens"):
        builder().build([replace(ROWS[0], values={"text": text + "x", "label": "y"})])


def test_what_a_template_cannot_ask_for():
    with pytest.raises(TemplateError, match=r"data.jsonl line 1: the text ' yes\?' behind the answer is never seen"):
        builder("{text}{mask} yes?").build(ROWS)
    with pytest.raises(RequestError, match=r"data.jsonl line 1: the request is empty, so there is nothing to continue"):
        builder("{text}{mask}").build([Row({"text": "", "label": "y"}, "data.jsonl line 1")])


def test_a_list_of_targets_takes_turns():
    rows = [Row({"text": "a", "label": ["yes", "no", "yes"]}, "data.jsonl line 1")]
    (example,) = builder("{text}={target:label}", None).build(rows)
    texts = [tiny_model("llama").tokenizer.decode(example.at_epoch(epoch).target[:-1]) for epoch in range(4)]
    assert texts == ["yes", "no", "yes", "no"]


def test_every_row_goes_through_every_template():
    lm = tiny_model("llama")
    templates = tuple(map(Template.parse, ("{text}{mask}", "Say: {text}{mask}")))
    made = ExampleBuilder(
        lm, TrainingData(templates, WORDS, (), False, "label", ROWS, ROWS), ExampleEncoder(lm.tokenizer)
    ).build(ROWS[:1])
    assert [lm.tokenizer.decode(example.prompt_ids) for example in made] == ["short", "Say: short"]


@pytest.mark.parametrize(
    "loss", [LabelLoss(scorer(), torch.tensor([1.0, 3.0])), LabelLoss(scorer())], ids=["weights", "plain"]
)
def test_parts_of_a_batch_sum_to_its_mean(loss):
    lm, learned, examples = tiny_model("llama"), encoder("p-tuning-v2"), builder().build(ROWS)
    whole = mean_loss(loss, lm, learned.front(), examples)
    normalizer = loss.normalizer(examples)
    parts = [loss.total(lm, learned.front(), examples[part::2]) / normalizer for part in range(2)]
    torch.testing.assert_close(sum(parts), whole)


def test_class_weights_are_those_of_torch():
    lm, learned, examples = tiny_model("llama"), encoder("p-tuning-v2"), builder().build(ROWS)
    weights = torch.tensor([1.0, 3.0])
    encoded = [example.encoded for example in examples]
    batch, rows = scorer().make_batch(learned.front(), encoded)
    scores = scorer().scores(lm.logits(batch, rows))
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1, 0, 1]), weight=weights)
    torch.testing.assert_close(mean_loss(LabelLoss(scorer(), weights), lm, learned.front(), examples), expected)


def test_soft_labels_are_learned_as_they_are():
    lm, learned, examples = tiny_model("llama"), encoder("p-tuning-v2"), builder().build(ROWS)
    hard = mean_loss(LabelLoss(scorer()), lm, learned.front(), examples)
    soft = [replace(e, soft_labels=(1.0, 0.0) if e.labels == (0,) else (0.0, 1.0), labels=()) for e in examples]
    torch.testing.assert_close(mean_loss(LabelLoss(scorer()), lm, learned.front(), soft), hard)
