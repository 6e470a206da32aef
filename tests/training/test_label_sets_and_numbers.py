"""Several labels a row and numbers as targets: read, learned, evaluated, stored and answered."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foreword.bank.bank import Bank
from foreword.engine.engine import Engine
from foreword.errors import DataError, SettingError, UsageError
from foreword.evaluation.evaluate import evaluate
from foreword.evaluation.predict import classify, label_answer
from foreword.text.rows import Row
from foreword.training.data.class_weights import class_weights
from foreword.training.data.training_data import TrainingData
from foreword.training.recipe import Recipe
from foreword.training.run import Run
from foreword.training.train import train
from tiny_models import tiny_model
from training.small_data import write_csv, write_jsonl


def sets(count: int, seed: int) -> list[dict]:
    """A text has the labels whose letters are in it; one in four has none."""
    source = random.Random(seed)
    rows = []
    for _ in range(count):
        letters = [letter for letter in "ab" if source.random() < 0.5]
        noise = list("xy"[: source.randint(1, 2)])
        rows.append({"text": "".join([*noise, *letters]), "label": [letter.upper() for letter in letters]})
    return rows


def numbers(count: int, seed: int, scale: float = 1.0) -> list[dict]:
    """The number is 3 with an a in the text and 5 without, with noise."""
    source = random.Random(seed)
    rows = []
    for _ in range(count):
        has = source.random() < 0.5
        number = scale * ((3 if has else 5) + 0.2 * source.random())
        rows.append({"text": source.choice("xyz") + ("a" if has else "b"), "label": number})
    return rows


def recipe(folder, rows, held, **changes) -> Recipe:
    files = {"data": write_jsonl(folder / "train.jsonl", rows), "eval": write_jsonl(folder / "eval.jsonl", held)}
    settings = {"template": "{text}", "init": "random", "length": 4, "max_steps": 60, "lr": 0.05}
    return Recipe(**{**files, **settings, "out": str(folder / "run"), **changes})


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_several_labels_are_learned_evaluated_and_answered(family, tmp_path):
    lm, held, said = tiny_model(family), sets(24, 2), []
    result = train(lm, recipe(tmp_path, sets(48, 1), held), name="topics", say=said.append)
    head = result.task.head
    assert (head.labels, head.problem_type, head.per_token) == (("A", "B"), "multi_label_classification", False)
    assert list(result.metrics) == ["micro_f1", "macro_f1", "subset_accuracy"]
    assert result.metrics["micro_f1"] > 0.9
    assert any(line.startswith("always the labels of most rows (") for line in said)
    task = Bank(tmp_path / "bank").load(Bank(tmp_path / "bank").publish(result.task).ref)
    assert task.head.problem_type == "multi_label_classification"
    with Engine(lm, cache_bytes=1 << 20) as engine:
        report = evaluate(engine, task, [Row(row, f"line {i}") for i, row in enumerate(held)])
        both, none = classify(engine, task, [{"text": "xab"}, {"text": "x"}])
    assert report.metrics == pytest.approx(result.metrics)
    assert list(report.per_class()) == ["A", "B"]
    assert report.classes_to_json().keys() == {"per_class"}
    with pytest.raises(UsageError, match="have no confusion matrix"):
        report.confusion()
    assert label_answer(task, both)["labels"] == ["A", "B"]
    assert sum(both.values()) > 1.2  # probabilities of their own, which no softmax gives
    answer = label_answer(task, none)
    assert (answer["labels"], answer["probs"]) == ([], none)
    assert answer["label"] == max(none, key=none.__getitem__)


def test_the_metrics_are_scikit_learns(tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    from foreword.evaluation.metrics import label_set_metrics

    source = random.Random(3)
    labels = ("a", "b", "c", "never")
    expected, predicted = ([[x for x in "abc" if source.random() < 0.4] for _ in range(40)] for _ in range(2))
    one, other = ([[x in row for x in labels] for row in side] for side in (expected, predicted))
    found = label_set_metrics(predicted, expected, labels)
    for name in ("micro", "macro"):
        assert found[f"{name}_f1"] == pytest.approx(metrics.f1_score(one, other, average=name, zero_division=0))
    assert found["subset_accuracy"] == pytest.approx(metrics.accuracy_score(one, other))


def test_the_correlations_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    from foreword.evaluation.correlation import pearson, spearman

    source = np.random.default_rng(1)
    for ties in (False, True):
        x, y = source.normal(size=50), source.normal(size=50)
        x, y = (np.round(x), np.round(y)) if ties else (x, y)
        assert pearson(x.tolist(), y.tolist()) == pytest.approx(stats.pearsonr(x, y)[0])
        assert spearman(x.tolist(), y.tolist()) == pytest.approx(stats.spearmanr(x, y)[0])
    assert pearson([1, 1, 1], [1, 2, 3]) == spearman([1, 1, 1], [1, 2, 3]) == 0
    assert np.isnan(spearman([float("nan"), 1.0], [1.0, 2.0]))


def test_the_loss_of_several_labels_is_pytorchs(tmp_path):
    lm = tiny_model("llama")
    run = Run.from_recipe(lm, recipe(tmp_path, sets(20, 1), sets(8, 2), class_weights="balanced"))
    prompt = run.initial_prompt()
    with torch.no_grad():
        prompt.head.bias.copy_(torch.tensor([0.3, -0.2]))
    loss, examples = run.loss(prompt), run.examples[:5]
    front = prompt.front()
    batch, places = loss.scorer.make_batch(front, [each.encoded for each in examples])
    scores = loss.scorer.scores(lm.hidden_states(batch, places))
    wanted = torch.tensor([[float(i in each.labels) for i in range(2)] for each in examples])
    weights = torch.tensor(list(class_weights(run.recipe, run.data).values()))
    expected = F.binary_cross_entropy_with_logits(scores, wanted, pos_weight=weights)
    found = loss.total(lm, front, examples) / loss.normalizer(examples)
    torch.testing.assert_close(found, expected)
    count = sum("A" in row.values["label"] for row in run.data.train_rows)
    assert class_weights(run.recipe, run.data)["A"] == pytest.approx((20 - count) / count)


@pytest.mark.parametrize(("family", "scale"), [("llama", 1.0), ("llama", 10000.0), ("bert", 1.0)])
def test_numbers_are_learned_whatever_their_size(family, scale, tmp_path):
    lm, said = tiny_model(family), []
    settings = recipe(tmp_path, numbers(48, 1, scale), numbers(24, 2, scale), problem_type="regression")
    result = train(lm, settings, name="grade", say=said.append)
    assert list(result.metrics) == ["pearson", "spearman", "mse", "mae"]
    assert result.metrics["pearson"] > 0.95
    assert result.metrics["mae"] < 0.3 * scale
    assert any(line.startswith("always the mean ") for line in said)
    task = Bank(tmp_path / "bank").load(Bank(tmp_path / "bank").publish(result.task).ref)
    assert (task.labels, task.head.problem_type) == (("label",), "regression")
    with Engine(lm, cache_bytes=1 << 20) as engine:
        (found,) = classify(engine, task, [{"text": "xa"}])
        report = evaluate(engine, task, [Row({"text": "xa", "label": "3.5"}, "line 1")])
    assert label_answer(task, found) == {"value": found["label"]}
    assert found["label"] == pytest.approx(3.1 * scale, abs=0.5 * scale)
    assert report.predictions[0].expected == 3.5
    assert report.loss == pytest.approx((found["label"] - 3.5) ** 2)
    with pytest.raises(UsageError, match="answers numbers has no classes"):
        report.per_class()


def test_numbers_may_be_text_of_a_csv(tmp_path):
    rows = [{"text": row["text"], "label": f"{row['label']:.2f}"} for row in numbers(12, 1)]
    data = TrainingData.read(Recipe(data=write_csv(tmp_path / "a.csv", rows), problem_type="regression"))
    assert data.number(data.train_rows[0]) == float(data.train_rows[0].values["label"])
    assert "numbers from 3.0" in data.overview


def read(tmp_path, rows, **changes) -> TrainingData:
    return TrainingData.read(Recipe(data=write_jsonl(tmp_path / "rows.jsonl", rows), **changes))


def test_lists_are_tags_beside_words_and_labels_beside_a_text(tmp_path):
    words = [{"tokens": ["a", "b"], "label": ["O", "X"]}, {"tokens": ["c"], "label": ["O"]}] * 2
    assert read(tmp_path, words).per_token
    texts = [{"text": "one text", "label": ["x"]}, {"text": "two", "label": ["x", "y"]}, {"text": "b c", "label": []}]
    data = read(tmp_path, texts)
    assert (data.problem_type, data.labels) == ("multi_label_classification", ("x", "y"))
    assert [data.label_ids(row) for row in [*data.train_rows, *data.eval_rows]].count(()) == 1
    unclear = [{"text": "two words", "label": ["x", "y"]}, {"text": "one", "label": ["x"]}]
    with pytest.raises(DataError, match=r"as many labels as the text has words.*--problem-type token_classification"):
        read(tmp_path, unclear)
    assert read(tmp_path, unclear, problem_type="token_classification", template="{text}").per_token
    said = read(tmp_path, unclear, problem_type="multi_label_classification")
    assert (said.problem_type, said.template.source) == ("multi_label_classification", "{text}")


@pytest.mark.parametrize(
    ("rows", "changes", "says"),
    [
        (
            [{"text": "a", "label": 3.5}, {"text": "b", "label": 4}],
            {},
            r"numbers such as 3.5 \(2 different\); say with",
        ),
        ([{"text": "a", "label": "3.5"}, {"text": "b", "label": "4"}], {}, "--problem-type regression that the number"),
        (
            [{"text": "a c", "label": ["x"]}, {"text": "b", "label": "x"}],
            {},
            "line 2: label 'x' is no list, unlike that of",
        ),
        ([{"text": "a c", "label": []}, {"text": "b b", "label": []}], {}, "is an empty list in every row"),
        (
            [{"text": "a c", "label": ["x"]}] * 2,
            {"head": "verbalizer"},
            "holds several labels, which needs --head linear",
        ),
        (
            [{"text": "a", "label": 1}] * 2,
            {"head": "verbalizer", "problem_type": "regression"},
            "holds a number, which",
        ),
        (
            [{"text": "a", "label": "x"}] * 2,
            {"problem_type": "regression"},
            "must be a finite number to learn, found 'x'",
        ),
        ([{"text": "a", "label": True}] * 2, {"problem_type": "regression"}, "must be a finite number to learn"),
        ([{"text": "a", "label": "x"}] * 2, {"problem_type": "multi_label_classification"}, "must be a list of labels"),
        ([{"text": "a", "label": ["x", " "]}] * 2, {}, "a label is empty"),
        ([{"text": "a c", "label": ["x"]}] * 2, {"template": "{text}{mask}"}, "a linear head reads the text"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(rows, changes, says, tmp_path):
    with pytest.raises(UsageError, match=says):
        read(tmp_path, rows, **changes)


def test_whole_numbers_stay_labels_and_words_may_be_given_for_fractions(tmp_path):
    whole = [{"text": "a", "label": 1}, {"text": "b", "label": 2}]
    assert read(tmp_path, whole).labels == ("1", "2")
    halves = [{"text": "a", "label": 1.5}, {"text": "b", "label": 2.5}]
    assert read(tmp_path, halves, verbalizer={"1.5": "bad", "2.5": "good"}).labels == ("1.5", "2.5")
    assert read(tmp_path, halves, problem_type="single_label_classification").labels == ("1.5", "2.5")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"calibrate": True}, "--calibrate is for one label a row"),
        ({"class_weights": "balanced", "problem_type": "regression"}, "--class-weights is for labels"),
        ({"problem_type": "several"}, "--problem-type must be one of"),
        ({"template": "{text}{target:label}", "problem_type": "regression"}, "this run generates text"),
    ],
)
def test_settings_that_contradict_the_labels_are_refused(changes, says, tmp_path):
    rows = numbers(12, 1) if changes.get("problem_type") == "regression" else sets(12, 1)
    with pytest.raises(SettingError, match=says):
        train(tiny_model("llama"), recipe(tmp_path, rows, rows, **changes))


def test_a_head_without_bias_is_asked_for(tmp_path):
    lm = tiny_model("llama")
    result = train(lm, recipe(tmp_path, sets(24, 1), sets(12, 2), head_bias=False, max_steps=5))
    assert not result.task.head.bias.any()
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}] * 2
    with pytest.raises(SettingError, match="--head-bias is for linear heads"):
        Run.from_recipe(lm, recipe(tmp_path, rows, rows, template="{text}{mask}", head_bias=False))


def test_numbers_that_are_all_the_same_are_nothing_to_learn(tmp_path):
    rows = [{"text": "a", "label": 2.0}] * 4
    with pytest.raises(DataError, match="every row has the number 2; there is nothing to learn from"):
        train(tiny_model("llama"), recipe(tmp_path, rows, rows, problem_type="regression"))
