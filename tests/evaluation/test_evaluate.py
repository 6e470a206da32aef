"""Evaluation through the engine: the figures of direct scoring, and errors that name the row."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch

from engine.reference import learned_prefix, reference_logits
from foreword.core import Batch, KVPrefix, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import (
    DataError,
    ModelMismatch,
    PromptTooLong,
    RequestError,
    TemplateError,
    UsageError,
    VerbalizerError,
)
from foreword.evaluation.evaluate import evaluate
from foreword.evaluation.predict import classify
from foreword.evaluation.row_labels import row_label
from foreword.evaluation.sampling_params import task_sampling_params
from foreword.prompts.static import static_task
from foreword.text.rows import Row
from tiny_models import tiny_model

WORDS = {"good": (" great", " fine"), "bad": (" grim",)}
TEXTS = ["a film", "x", "something rather longer than that", "y z"]


@pytest.fixture(scope="module")
def engine():
    with Engine(tiny_model("llama"), cache_bytes=4 << 20) as made:
        yield made


def labelled(length: int = 5, **changes) -> Task:
    prefix = random_prefix("llama", length)
    return replace(Task("t", "p-tuning-v2", prefix, template="{text}:{mask}", verbalizer=WORDS), **changes)


def random_prefix(family: str, length: int) -> KVPrefix:
    identity, draw = tiny_model(family).identity, torch.Generator().manual_seed(1)
    keys = tuple(torch.randn(s.kv_heads, length, s.key_dim, generator=draw) for s in identity.layers)
    values = tuple(torch.randn(s.kv_heads, length, s.value_dim, generator=draw) for s in identity.layers)
    return KVPrefix(identity, keys, values, offset=length)


def rows(labels: list, **values) -> list[Row]:
    return [
        Row({"text": text, "label": label, **values}, f"test.csv line {number}")
        for number, (text, label) in enumerate(zip(TEXTS, labels, strict=True), 2)
    ]


def score(task: Task, text: str, word: str) -> torch.Tensor:
    """Log-probability of a word by running the whole text with it."""
    lm = tiny_model("llama")
    prompt, answer = lm.tokenizer(f"{text}:").input_ids, lm.tokenizer(word).input_ids
    ids = torch.tensor(prompt + answer)
    prefix = task.prefix if task.prefix.length else None
    logits = lm.logits(Batch((len(ids),), (None,), (prefix,), ids), torch.arange(len(prompt) - 1, len(ids) - 1))
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()


@pytest.mark.parametrize("length", [5, 0])
def test_classify_is_direct_scoring(engine, length):
    task = labelled(length)
    for text, found in zip(TEXTS, classify(engine, task, [{"text": text} for text in TEXTS]), strict=True):
        labels = [torch.stack([score(task, text, word) for word in words]).logsumexp(0) for words in WORDS.values()]
        expected = torch.stack(labels).softmax(0)
        assert list(found) == ["good", "bad"]
        torch.testing.assert_close(torch.tensor(list(found.values())), expected, atol=1e-5, rtol=0)


def test_evaluate_counts_what_classify_says(engine):
    task = labelled()
    probs = classify(engine, task, [{"text": text} for text in TEXTS])
    predicted = [max(found, key=found.__getitem__) for found in probs]
    labels = [predicted[0], *("bad" if label == "good" else "good" for label in predicted[1:])]
    report = evaluate(engine, task, rows(labels))
    assert (report.n, report.metrics["accuracy"]) == (4, 0.25)
    assert [found.predicted for found in report.predictions] == predicted
    assert [found.expected for found in report.predictions] == labels
    assert report.predictions[2].probs == pytest.approx(probs[2], abs=1e-5)


def test_generated_answers_are_compared_as_text(engine):
    task = labelled(template="{text}={target:label}", verbalizer=None, generation={"max_tokens": 3})
    first = evaluate(engine, task, rows(["?"] * 4))
    assert list(first.metrics) == ["exact_match", "token_f1", "bleu", "rouge_l", "chrf", "perplexity"]
    assert (first.metrics["exact_match"], first.metrics["chrf"], first.unavailable_metrics) == (0.0, 0.0, ())
    said = [found.predicted for found in first.predictions]
    again = evaluate(engine, task, rows([f" {text}\n" for text in said]))
    assert (again.metrics["exact_match"], again.metrics["token_f1"]) == (1.0, 1.0)


def test_any_reference_will_do(engine):
    task = labelled(template="{text}={target:label}", verbalizer=None, generation={"max_tokens": 3})
    said = [found.predicted for found in evaluate(engine, task, rows(["?"] * 4)).predictions]
    report = evaluate(engine, task, rows([["?", text] for text in said]))
    assert report.metrics["exact_match"] == 1.0
    assert [found.references for found in report.predictions] == [("?", text) for text in said]
    assert [found.expected for found in report.predictions] == ["?"] * 4


def test_without_the_extra_the_report_says_what_is_left_out(engine, monkeypatch):
    for module in ("sacrebleu", "rouge_score"):
        monkeypatch.setitem(sys.modules, module, None)
    task = labelled(template="{text}={target:label}", verbalizer=None, generation={"max_tokens": 1})
    report = evaluate(engine, task, rows(["?"] * 4))
    assert list(report.metrics) == ["exact_match", "token_f1", "perplexity"]
    assert report.unavailable_metrics == ("bleu", "chrf", "rouge_l")


def test_perplexity_is_that_of_the_whole_text(engine):
    """Of every token of the first references; of more rows than are scored in one call."""
    task = labelled(template="{text}:{target:label}", verbalizer=None, generation={"max_tokens": 1})
    wanted = [[" great", "x"], [""], " a much longer answer", " grim"]
    report = evaluate(engine, task, rows(wanted) * 20)
    words = [(text, word) for text, word in zip(TEXTS, [" great", "", *wanted[2:]], strict=True) if word]
    logprob = sum(float(score(task, text, word)) for text, word in words)
    tokens = sum(len(tiny_model("llama").tokenizer(word).input_ids) for _, word in words)
    assert report.metrics["perplexity"] == pytest.approx(math.exp(-logprob / tokens), rel=1e-4)


def test_a_reference_is_cut_to_the_context(engine):
    task = labelled(template="{text}:{target:label}", verbalizer=None, generation={"max_tokens": 1})
    text = "x" * 240
    room = 256 - 5 - 241
    long, fitting = (
        evaluate(engine, task, [Row({"text": text, "label": "y" * count}, "test.csv line 2")]).metrics["perplexity"]
        for count in (room + 30, room)
    )
    assert long == pytest.approx(fitting)


def test_no_reference_has_a_token(engine):
    task = labelled(template="{text}={target:label}", verbalizer=None, generation={"max_tokens": 1})
    assert "perplexity" not in evaluate(engine, task, rows([""] * 4)).metrics


def test_long_prompts_still_get_the_room_that_is_left(engine):
    """The task's default of tokens would go beyond the context; the answer ends there instead."""
    task = labelled(template="{text}={target:label}", verbalizer=None, generation={"max_tokens": 100})
    row = Row({"text": "x" * 245, "label": "y"}, "test.csv line 2")
    assert evaluate(engine, task, [row]).n == 1


def test_a_static_task_with_a_template_can_be_scored(engine):
    task = static_task(tiny_model("llama"), "s", "prompt", "Good or bad?\n")
    with_template = replace(task, template="{text}:{mask}", verbalizer=WORDS)
    joined = labelled(0, template="Good or bad?\n{text}:{mask}")
    for a, b in zip(
        evaluate(engine, with_template, rows(["good"] * 4)).predictions,
        evaluate(engine, joined, rows(["good"] * 4)).predictions,
        strict=True,
    ):
        assert a.probs == pytest.approx(b.probs, abs=1e-5)


@pytest.mark.parametrize(
    ("value", "label"), [("y", "y"), (1, "1"), (1.0, "1.0"), (True, "true"), (False, "false"), ("True", "True")]
)
def test_labels_are_text_as_json_spells_them(value, label):
    assert row_label(Row({"label": value}, "x"), "label") == label


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        ({"text": "x"}, DataError, r"^test.csv line 9: the row has no field 'label' \(it has: text\); pass --label-"),
        ({"text": "x", "label": None}, DataError, "^test.csv line 9: label null is no label; write the label, or"),
        ({"text": "x", "label": "goood"}, VerbalizerError, "^test.csv line 9: label 'goood' is not one of .* 'good'?"),
        ({"label": "good"}, TemplateError, "^test.csv line 9: the row has no field 'text'"),
        ({"text": ["x"], "label": "good"}, TemplateError, "^test.csv line 9: field 'text' is a list, not text"),
        ({"text": "x" * 300, "label": "good"}, PromptTooLong, "^test.csv line 9: the example has 306 tokens with its"),
        ({"text": "x" * 245, "label": "good"}, PromptTooLong, "^test.csv line 9: the example has 251 tokens with its"),
        ({"text": "\ud800", "label": "good"}, RequestError, "^test.csv line 9: the text has half of a surrogate"),
    ],
    ids=["label", "null", "other", "field", "list", "long", "words", "unicode"],
)
def test_errors_name_the_row(engine, bad, kind, message):
    with pytest.raises(kind, match=message):
        evaluate(engine, labelled(), [*rows(["good"] * 4), Row(bad, "test.csv line 9")])


def test_what_cannot_be_evaluated(engine):
    with pytest.raises(DataError, match="rows in memory has no examples"):
        evaluate(engine, labelled(), [])
    with pytest.raises(TemplateError, match="task 't' has no template"):
        evaluate(engine, labelled(template=None), rows(["good"] * 4))
    with pytest.raises(TemplateError, match=r"without \{mask\} or \{target:\.\.\.\}"):
        evaluate(engine, labelled(template="{text}"), rows(["good"] * 4))
    with pytest.raises(UsageError, match="task 't' has no verbalizer"):
        classify(engine, labelled(verbalizer=None), [{"text": "x"}])


def test_a_task_of_another_model(engine):
    with pytest.raises(ModelMismatch, match="architecture is GPT2LMHeadModel"):
        evaluate(engine, labelled(prefix=random_prefix("gpt2", 5)), rows(["good"] * 4))


def test_generation_defaults_give_way_to_the_request():
    task = labelled(generation={"max_tokens": 7, "stop": ["\n"], "unknown": 1})
    assert task_sampling_params(task).max_tokens == 7
    assert task_sampling_params(task).stop == ("\n",)
    assert task_sampling_params(task, max_tokens=9, stop=None).max_tokens == 9
    assert task_sampling_params(None).max_tokens == 128


@pytest.mark.parametrize("bias", [{"great": 1.0}, {"7": "much"}, {"7": None}, [7, 1.0], {"7.5": 1.0}])
def test_a_default_bias_that_is_none_is_refused(bias):
    with pytest.raises(
        UsageError, match=r"a generation default of task 't' is wrong: logit_bias must .* got .*; publish"
    ):
        task_sampling_params(labelled(generation={"logit_bias": bias}))
    assert task_sampling_params(labelled(generation={"logit_bias": {"7": 1}})).logit_bias == {7: 1.0}


def test_members_of_an_ensemble_answer_in_one_batch(engine, monkeypatch):
    """And their answer is the mean of what plain Transformers gives behind each of them."""
    members = [learned_prefix("llama", 5, seed) for seed in range(3)]
    task = labelled(prefix=members[0], members=tuple(members[1:]), verbalizer={"good": ("g",), "bad": ("b",)})
    asked: list[int] = []
    score = engine.score
    monkeypatch.setattr(
        engine, "score", lambda prompts, scorer, **more: asked.append(len(prompts)) or score(prompts, scorer, **more)
    )
    found = classify(engine, task, [{"text": text} for text in TEXTS])
    assert asked == [3 * len(TEXTS)]
    words = [engine.tokenizer(word).input_ids[0] for word in "gb"]
    for text, probs in zip(TEXTS, found, strict=True):
        ids = tuple(engine.tokenizer(f"{text}:").input_ids)
        last = [reference_logits("llama", Request(ids, member, 5))[-1, words] for member in members]
        expected = torch.stack(last).softmax(-1).mean(0)
        torch.testing.assert_close(torch.tensor([probs["good"], probs["bad"]]), expected, atol=1e-5, rtol=0)
