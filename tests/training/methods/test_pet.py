"""PET on tiny random models: patterns that learn, teach, are resumed, and leave the model as it was."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from foreword.core import Adapter, Batch, Front
from foreword.engine.engine import Engine
from foreword.errors import DataError, TemplateError, UsageError
from foreword.evaluation.evaluate import evaluate
from foreword.models import LanguageModel, load_model
from foreword.text.encoded_example import EncodedExample
from foreword.text.rows import read_rows
from foreword.training.data.examples import Example
from foreword.training.methods.full_finetuning import FullFinetuning
from foreword.training.methods.pet.pvp_run import PVPRun
from foreword.training.methods.pet.soft_labels import TEMPERATURE, PatternPredictions, soft_labels
from foreword.training.methods.pet.unlabeled_text import (
    AuxiliaryLMLoss,
    ExampleWithUnlabeled,
    UnlabeledTexts,
    with_unlabeled,
)
from foreword.training.recipe import Recipe
from foreword.training.run import Run
from foreword.training.train import train
from tiny_models import byte_tokenizer, save_tiny, tiny_model
from training.small_data import examples, recipe, write_jsonl

PATTERNS = ["{text}{mask}", "Is {text} it?{mask}"]


def model(family: str) -> LanguageModel:
    """The tiny model; an encoder with a mask token."""
    lm = tiny_model(family)
    if lm.causal:
        return lm
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    return replace(lm, tokenizer=tokenizer)


def pet(folder: Path, **changes) -> Recipe:
    settings = {"method": "pet", "init": "auto", "length": None, "lr": 0.02, "max_steps": 30}
    return recipe(folder, **{**settings, **changes})


def unlabeled(folder: Path, count: int = 40) -> str:
    rows = [{"text": row["text"]} for row in examples(count, 5)]
    return write_jsonl(folder / "unlabeled.jsonl", rows)


def weights(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in lm.model.named_parameters()}


def is_as_it_was(lm: LanguageModel, before: dict[str, torch.Tensor]) -> bool:
    now = dict(lm.model.named_parameters())
    frozen = not any(parameter.requires_grad or parameter.grad is not None for parameter in now.values())
    return frozen and all(now[name].dtype == old.dtype and torch.equal(now[name], old) for name, old in before.items())


def same(a: Adapter | None, b: Adapter | None) -> bool:
    assert a is not None
    assert b is not None
    return all(
        torch.equal(a.layers[name].down, b.layers[name].down) and torch.equal(a.layers[name].up, b.layers[name].up)
        for name in a.layers
    )


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_one_pattern_learns_an_adapter_that_is_served_as_it_was_measured(family, tmp_path):
    lm = model(family)
    before, settings = weights(lm), pet(tmp_path, rank=4)
    result = train(lm, settings, name="rule")
    assert result.before["accuracy"] < 0.8
    assert result.metrics["accuracy"] > 0.95
    task = result.task
    assert (task.method, task.prefix.length, result.model) == ("pet", 0, None)
    assert task.adapter is not None
    assert task.adapter.rank == 4
    with Engine(lm) as engine:
        assert evaluate(engine, task, read_rows(settings.eval)).metrics == result.metrics
    assert is_as_it_was(lm, before)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_patterns_teach_one_model_with_rows_that_have_no_label(family, tmp_path):
    said: list[str] = []
    settings = pet(tmp_path, template=PATTERNS, unlabeled=unlabeled(tmp_path))
    result = train(model(family), settings, say=said.append)
    assert result.metrics["accuracy"] > 0.95
    assert result.task.template in PATTERNS
    assert result.task.adapter is not None
    zero_shot = [line for line in said if line.startswith("without a prefix")]
    assert [pattern in line for pattern, line in zip(PATTERNS, zero_shot, strict=True)] == [True, True]
    for number in (1, 2):
        (line,) = [line for line in said if line.startswith(f"pattern {number}: ")]
        assert "on training rows before it learned" in line
        folder = result.folder / f"pattern-{number}"
        assert (folder / "history.json").is_file()
        assert not (folder / "checkpoints").exists()
    assert any("2 patterns teach pattern" in line and "40 rows" in line for line in said)


def test_rows_without_a_label_that_are_too_long_are_left_out(tmp_path):
    said: list[str] = []
    file = unlabeled(tmp_path, 4)
    with open(file, "a", encoding="utf-8") as handle:
        handle.write('{"text": "' + "x" * 400 + '"}\n')
    settings = pet(tmp_path, template=PATTERNS, unlabeled=file, long_rows="skip", max_steps=2)
    train(model("llama"), settings, say=said.append)
    assert any("2 patterns teach pattern" in line and "with 4 rows" in line for line in said)


def test_patterns_without_such_rows_learn_one_adapter_together(tmp_path):
    result = train(model("llama"), pet(tmp_path, template=PATTERNS, max_steps=24))
    assert result.metrics["accuracy"] > 0.95
    assert not list(result.folder.glob("pattern-*"))
    settings = pet(tmp_path, eval=str(tmp_path / "eval.jsonl"))
    with Engine(model("llama")) as engine:
        for pattern in PATTERNS:
            task = replace(result.task, template=pattern)
            assert evaluate(engine, task, read_rows(settings.eval or "")).metrics["accuracy"] > 0.9


def test_all_weights_become_a_model_folder_that_predicts_the_same(tmp_path):
    lm = model("llama")
    before, settings = weights(lm), pet(tmp_path, weights="all", lr=3e-3)
    result = train(lm, settings, name="rule")
    assert result.metrics["accuracy"] > 0.95
    assert is_as_it_was(lm, before)
    assert result.trained_parameters == sum(value.numel() for value in before.values())
    assert result.model == result.folder / "model"
    loaded = load_model(str(result.model))
    assert loaded.identity == result.task.prefix.model
    assert loaded.identity.weights != lm.identity.weights
    with Engine(loaded) as engine:
        assert evaluate(engine, result.task, read_rows(settings.eval)).metrics == result.metrics


def test_all_weights_of_a_bfloat16_model_are_measured_as_they_are_saved(tmp_path):
    lm = load_model(str(save_tiny("llama", tmp_path / "base")), dtype="bfloat16")
    before, settings = weights(lm), pet(tmp_path, weights="all", lr=3e-3, max_steps=12)
    result = train(lm, settings)
    assert is_as_it_was(lm, before)
    loaded = load_model(str(result.model))
    assert loaded.dtype == torch.bfloat16
    with Engine(loaded) as engine:
        assert evaluate(engine, result.task, read_rows(settings.eval)).metrics == result.metrics


def test_all_weights_of_several_patterns(tmp_path):
    """Every pattern starts from the model as it was."""
    lm = model("bert")
    before = weights(lm)
    changes = {"template": PATTERNS, "unlabeled": unlabeled(tmp_path), "weights": "all", "lr": 1e-3, "max_steps": 30}
    result = train(lm, pet(tmp_path, **changes))
    assert result.metrics["accuracy"] > 0.95
    assert is_as_it_was(lm, before)
    assert [path.name for path in result.folder.glob("**/model")] == ["model"]


def test_a_model_is_put_back_after_an_error():
    lm = model("llama")
    before = weights(lm)

    def spoil() -> None:
        with FullFinetuning(lm), torch.no_grad():
            for parameter in lm.model.parameters():
                assert parameter.requires_grad
                parameter.add_(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spoil()
    assert is_as_it_was(lm, before)


def test_a_run_that_stopped_behind_a_pattern_goes_on_as_if_it_had_not(tmp_path):
    changes = {"template": PATTERNS, "unlabeled": unlabeled(tmp_path), "max_steps": 6}
    whole = train(model("llama"), pet(tmp_path, **changes, out=str(tmp_path / "whole")))

    def stop(line: str) -> None:
        if line.startswith("pattern 1:"):
            raise KeyboardInterrupt

    settings = pet(tmp_path, **changes, out=str(tmp_path / "stopped"))
    with pytest.raises(KeyboardInterrupt):
        train(model("llama"), settings, say=stop)
    history = tmp_path / "stopped" / "pattern-1" / "history.json"
    written = history.stat().st_mtime_ns
    resumed = train(model("llama"), replace(settings, resume=True))
    assert history.stat().st_mtime_ns == written
    assert same(resumed.task.adapter, whole.task.adapter)
    assert resumed.metrics == whole.metrics


def test_soft_labels_are_the_mean_scores_by_weight_at_temperature_two():
    first = PatternPredictions(weight=0.75, metric=0.9, scores=((-1.0, -2.0),))
    other = PatternPredictions(weight=0.25, metric=0.8, scores=((-4.0, -0.5),))
    expected = torch.tensor([0.75 * -1.0 + 0.25 * -4.0, 0.75 * -2.0 + 0.25 * -0.5]).div(TEMPERATURE).softmax(-1)
    assert soft_labels([first, other])[0] == pytest.approx(expected.tolist())
    blind = [replace(each, weight=0.0) for each in (first, other)]
    assert soft_labels(blind)[0] == pytest.approx(torch.tensor([-2.5, -1.25]).div(2).softmax(-1).tolist())
    assert PatternPredictions.from_json(json.loads(json.dumps(first.to_json()))) == first


def test_a_share_of_an_unlabeled_text_is_masked_and_nothing_special():
    lm = model("bert")
    mask = lm.tokenizer.mask_token_id
    ids = (*lm.tokenizer("twenty letters, about").input_ids, mask, *lm.tokenizer(" more").input_ids)
    texts = UnlabeledTexts.for_model(lm, [EncodedExample(ids, (0,))], seed=3)
    seen = [texts[number] for number in range(60)]
    for text in seen:
        assert len(text.places) == round(0.15 * (len(ids) - 1))
        assert all(text.token_ids[place] == mask for place in text.places)
        assert text.targets == tuple(ids[place] for place in text.places)
        assert mask not in text.targets
        untouched = set(range(len(ids))) - set(text.places)
        assert all(text.token_ids[place] == ids[place] for place in untouched)
    assert {place for text in seen for place in text.places} == set(range(len(ids))) - {ids.index(mask)}
    assert seen == [texts[number] for number in range(60)]


def test_targets_of_a_causal_model_are_next_tokens():
    texts = UnlabeledTexts.for_model(
        model("llama"), [EncodedExample((5, 6, 7), (2,)), EncodedExample((9,), (0,))], seed=0
    )
    assert texts[0].token_ids == (5, 6, 7)
    assert (texts[0].places, texts[0].targets) == ((0, 1), (6, 7))
    assert texts[1].places == ()


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_loss_of_unlabeled_texts_is_that_of_each_alone(family):
    lm = model(family)
    source = random.Random(1)
    encoded = [EncodedExample(tuple(source.choices(range(90, 120), k=n)), (0,)) for n in (4, 7, 12)]
    texts = UnlabeledTexts.for_model(lm, encoded, seed=0)
    brought = [example.at_epoch(2) for example in with_unlabeled([Example(q, labels=(0,)) for q in encoded], texts)]

    class Nothing:
        def total(self, lm, front, examples):
            return torch.zeros(())

        def normalizer(self, examples):
            return float(len(examples))

    loss = AuxiliaryLMLoss(Nothing(), 0.5)
    alone = []
    for example in brought:
        assert isinstance(example, ExampleWithUnlabeled)
        assert example.text is not None
        batch = Batch.from_rows(Front(), [example.text.token_ids])
        logits = lm.logits(batch, torch.tensor(example.text.places))
        alone.append(F.cross_entropy(logits, torch.tensor(example.text.targets)))
    assert float(loss.total(lm, Front(), brought)) == pytest.approx(0.5 * float(sum(alone)), rel=1e-4)
    parts = sum(float(loss.total(lm, Front(), [example])) for example in brought)
    assert parts == pytest.approx(float(loss.total(lm, Front(), brought)), rel=1e-5)


def test_every_epoch_has_other_unlabeled_texts():
    texts = UnlabeledTexts.for_model(model("llama"), [EncodedExample((n, n), (1,)) for n in range(6)], seed=0)
    brought = with_unlabeled([Example(EncodedExample((1,), (0,)), labels=(0,)) for _ in range(3)], texts)
    first, second = ([example.at_epoch(epoch) for example in brought] for epoch in (0, 1))
    assert [e.text.token_ids[0] for e in first] == [0, 1, 2]  # type: ignore[attr-defined] - they are ExampleWithUnlabeled
    assert [e.text.token_ids[0] for e in second] == [3, 4, 5]  # type: ignore[attr-defined] - they are ExampleWithUnlabeled


def test_unlabeled_rows_change_what_one_pattern_learns_unless_they_weigh_nothing(tmp_path):
    def adapter(out: str, **changes) -> Adapter | None:
        settings = pet(tmp_path, max_steps=3, out=str(tmp_path / out), **changes)
        return train(model("llama"), settings).task.adapter

    alone = adapter("alone")
    rows = unlabeled(tmp_path)
    assert same(adapter("nothing", unlabeled=rows, lm_weight=0), alone)
    assert not same(adapter("along", unlabeled=rows, lm_weight=1.0), alone)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "some"}, "--weights must be lora or all, got 'some'"),
        ({"weights": "all", "rank": 4}, "--rank is of an adapter"),
        ({"weights": "all", "calibrate": True}, "--method pet with --weights all does not use --calibrate"),
        ({"weights": "all", "init": "random"}, "does not use --init"),
        ({"lm_weight": 0.1}, "give them with --unlabeled"),
        ({"members": 2}, "--method pet does not use --members"),
        ({"length": 4}, "no virtual tokens"),
        ({"template": "{text}{target:label}"}, "use --method lora"),
        ({"method": "lora", "unlabeled": "rows.jsonl"}, "--method lora has no option --unlabeled"),
        ({"method": "lora", "weights": "all"}, "--method lora has no option --weights"),
        ({"method": "p-tuning-v2", "candidates": 4}, "--method p-tuning-v2 has no option --candidates"),
        ({"candidates": 4}, "--method pet has no option --candidates"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_what_pet_does_not_do_is_said_before_anything_is_written(changes, words, tmp_path):
    with pytest.raises(UsageError, match=words.replace("{", r"\{")):
        train(model("llama"), pet(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_a_row_without_label_has_to_fill_every_pattern(tmp_path):
    rows = write_jsonl(tmp_path / "bad.jsonl", [{"text": "xa"}, {"other": "xb"}])
    with pytest.raises(TemplateError, match=r"bad.jsonl line 2: the row has no field 'text'"):
        train(model("llama"), pet(tmp_path, unlabeled=rows))
    long = write_jsonl(tmp_path / "long.jsonl", [{"text": "x" * 300}])
    with pytest.raises(DataError, match=r"long.jsonl line 1: the example has 30[0-9] tokens"):
        train(model("llama"), pet(tmp_path, unlabeled=long))


def test_a_certain_label_weighs_as_much_among_soft_ones(tmp_path):
    lm = model("llama")
    run = Run.from_recipe(lm, pet(tmp_path))
    prompt = run.initial_prompt()
    loss, row = run.loss(prompt), run.data.eval_rows[0]
    softly = PVPRun.on_soft_labels(run, run.data.template, [row], [(0.3, 0.7)]).examples
    assert softly[-1].soft_labels == (0.3, 0.7)
    hard = loss.total(lm, prompt.front(), run.examples)
    assert float(loss.total(lm, prompt.front(), softly[:-1])) == pytest.approx(float(hard), rel=1e-5)
    assert loss.normalizer(softly) == len(run.examples) + 1
