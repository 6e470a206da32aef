"""What else a run can be: heads, tags, soft tokens inside the template, adapters, ensembles, several templates."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback

from foreword.engine.engine import Engine
from foreword.errors import DataError, TemplateError, TrainingError, UsageError
from foreword.evaluation.evaluate import evaluate
from foreword.evaluation.predict import classify, tag
from foreword.text.rows import read_rows
from foreword.text.template import Template
from foreword.training.initialization import initializer
from foreword.training.loop.advice import advice
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.trainer import PrefixTrainer
from foreword.training.recipe import Recipe
from foreword.training.run import Run
from foreword.training.train import train
from tiny_models import tiny_model
from training.small_data import examples, recipe, write_jsonl


def tagged(count: int, seed: int) -> list[dict]:
    """Words of one letter: an ``a`` begins a span, and the ``b`` behind it goes on."""
    source = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens = source.choices(["a", "x", "y", "a"], k=source.randint(2, 6))
        rows.append({"tokens": tokens, "tags": ["B-A" if token == "a" else "O" for token in tokens]})
    return rows


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word, as in a word-piece vocabulary that knows them all; spaces are not tokens."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(["?", *"abxyz"])}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


def tag_recipe(folder: Path, **changes) -> Recipe:
    data = {
        "data": write_jsonl(folder / "tags.jsonl", tagged(48, 1)),
        "eval": write_jsonl(folder / "tags-eval.jsonl", tagged(16, 2)),
    }
    settings = {"template": None, "label_field": "tags", "lr": 0.1, "max_steps": 80}
    return recipe(folder, **{**data, **settings, **changes})


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_a_head_labels_texts_and_serves_what_it_learned(family, tmp_path, capsys):
    lm = tiny_model(family)
    settings = recipe(tmp_path, template="{text}", head="linear", length=6, lr=0.03, max_steps=80)
    result = train(lm, settings, name="rule")
    assert result.metrics["accuracy"] > 0.95
    assert result.before.keys() == {"accuracy"}
    assert "always the most frequent label: accuracy" in capsys.readouterr().err
    with Engine(lm, cache_bytes=1 << 20) as engine:
        assert evaluate(engine, result.task, read_rows(settings.eval)).metrics == result.metrics
        assert [max(p, key=p.__getitem__) for p in classify(engine, result.task, [{"text": "xza"}])] == ["y"]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_tags_are_learned_by_default_where_labels_are_lists(family, tmp_path):
    lm = replace(tiny_model(family), tokenizer=word_tokenizer())
    result = train(lm, tag_recipe(tmp_path), name="tags")
    assert result.task.template == "{tokens}"
    assert result.task.head is not None
    assert result.task.head.labels == ("O", "B-A")
    assert result.metrics["span_f1"] > 0.95
    with Engine(lm, cache_bytes=1 << 20) as engine:
        (words,) = tag(engine, result.task, [{"tokens": ["x", "a", "y"]}])
        assert [max(p, key=p.__getitem__) for p in words] == ["O", "B-A", "O"]
        assert tag(engine, result.task, [{"tokens": "x a y"}])[0] == words
        with pytest.raises(UsageError, match="labels every word; tag with it"):
            classify(engine, result.task, [{"tokens": "x"}])


class Travel(TrainerCallback):
    """How far the weights of a head are from where they began, before the best checkpoint comes back."""

    def __init__(self, head: torch.nn.Linear) -> None:
        self.head, self.start, self.far = head, head.weight.detach().clone(), 0.0

    def on_step_end(self, args, state, control, **_) -> None:
        self.far = float((self.head.weight - self.start).abs().mean())


@pytest.mark.parametrize("method", ["prefix-tuning", "p-tuning-v2", "prompt-tuning", "lora"])
def test_a_head_learns_as_fast_beside_any_method(method, tmp_path):
    """Its rate is its own: at that of an MLP, a tenth of it, it would hardly leave the noise that it begins with."""
    lm = tiny_model("bert")
    settings = recipe(tmp_path, method=method, template="{text}", head="linear", init="auto", max_steps=20)
    run = Run.from_recipe(lm, replace(settings, lr=None, length=None))
    prompt = run.initial_prompt()
    assert [group["lr"] for group in prompt.param_groups(run.lr)] == pytest.approx([run.method.lr, 5e-3])
    assert [group["lr"] for group in prompt.param_groups(run.lr / 2)] == pytest.approx([run.method.lr / 2, 2.5e-3])
    travel = Travel(prompt.head)
    with Engine(lm, cache_bytes=1 << 20) as engine:
        evaluator = TaskEvaluator(run, engine, run.task("run"), prompt)
        PrefixTrainer(run, prompt, evaluator, RunDir(tmp_path / "run"), travel).train()
    assert 0.01 < travel.far < 0.1


def test_tags_that_do_not_fit_their_words(tmp_path):
    rows = [*tagged(4, 1), {"tokens": ["a", "b"], "tags": ["O"]}]
    bad = write_jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match=r"bad.jsonl line 5: there are 1 tags for 2 words; give one a word"):
        train(tiny_model("bert"), tag_recipe(tmp_path, data=bad))
    with pytest.raises(TemplateError, match=r"the template 'Say: \{tokens\}' must be one field to tag its words"):
        train(tiny_model("bert"), tag_recipe(tmp_path, template="Say: {tokens}"))
    with pytest.raises(UsageError, match="holds a tag for every word, which needs --head linear"):
        train(tiny_model("bert"), tag_recipe(tmp_path, head="verbalizer"))


@pytest.mark.parametrize("method", ["p-tuning", "prompt-tuning"])
@pytest.mark.parametrize(
    ("template", "ahead"),
    [("{soft:3}{text}{soft:2}{mask}", 3), ("Say {soft:6} it {soft:6}: {text}{mask}", 20), ("{text}{soft:5}{mask}", 0)],
)
def test_soft_tokens_anywhere_in_the_template(method, template, ahead, tmp_path):
    lm = tiny_model("llama")
    lr = 0.05 if method == "prompt-tuning" else 0.01  # the LSTM moves all of its soft tokens at once
    settings = replace(recipe(tmp_path, method=method, template=template, lr=lr, max_steps=80), length=None)
    result = train(lm, settings)
    assert result.metrics["accuracy"] > 0.9
    assert result.task.prefix.length == ahead
    assert result.task.soft is not None
    assert len(result.task.soft) == Template.parse(template).num_soft_tokens


def test_soft_tokens_on_an_encoder_stay_in_the_rows(tmp_path):
    lm = tiny_model("bert")
    settings = recipe(
        tmp_path, method="prompt-tuning", template="{text}", head="linear", length=4, lr=0.05, max_steps=80
    )
    result = train(lm, settings)
    assert result.task.template == "{soft:4}{text}"
    assert result.task.prefix.length == 0
    assert result.metrics["accuracy"] > 0.95


@pytest.mark.parametrize("method", ["lora", "lora-hybrid"])
def test_adapters_learn_and_are_served(method, tmp_path):
    lm = tiny_model("llama")
    settings = recipe(tmp_path, method=method, lr=0.02, max_steps=40, init="auto")
    settings = settings if method == "lora-hybrid" else replace(settings, length=None)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    result = train(lm, settings)
    assert result.metrics["accuracy"] > 0.95
    assert result.task.adapter is not None
    assert (result.task.prefix.length > 0) == (method == "lora-hybrid")
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


@pytest.mark.parametrize("combine", ["mean", "vote"])
def test_members_of_an_ensemble_answer_together(combine, tmp_path):
    lm = tiny_model("llama")
    result = train(lm, recipe(tmp_path, members=3, max_steps=12))
    task = replace(result.task, combine=combine)
    assert len(task.members) == 2
    rows = [{"text": "xxa"}, {"text": "zb"}]
    with Engine(lm, cache_bytes=1 << 20) as engine:
        found = classify(engine, task, rows)
        singly = [classify(engine, replace(task, prefix=p, members=()), rows) for p in (task.prefix, *task.members)]
    for index, probs in enumerate(found):
        if combine == "mean":
            expected = sum(single[index]["y"] for single in singly) / 3
            assert probs["y"] == pytest.approx(expected, abs=1e-5)
        else:
            votes = sum(single[index]["y"] > single[index]["n"] for single in singly) / 3
            assert probs["y"] == pytest.approx(votes, abs=1e-4)
    assert (result.folder / "member-2" / "checkpoints").is_dir()


def test_the_best_of_several_templates_is_served(tmp_path, capsys):
    """One template hides the letter that decides."""
    rows = [{**row, "noise": "qq"} for row in examples(48, 1)]
    held = [{**row, "noise": "qq"} for row in examples(24, 2)]
    data = {"data": write_jsonl(tmp_path / "t.jsonl", rows), "eval": write_jsonl(tmp_path / "e.jsonl", held)}
    result = train(
        tiny_model("llama"), recipe(tmp_path, template=["{noise}{mask}", "{text}{mask}"], max_steps=120, **data)
    )
    assert result.task.template == "{text}{mask}"
    assert result.metrics["accuracy"] > 0.9
    said = capsys.readouterr().err
    assert "without a prefix ('{noise}{mask}')" in said
    assert "without a prefix ('{text}{mask}')" in said


def test_calibration_takes_away_what_is_said_to_nothing(tmp_path):
    lm = tiny_model("llama")
    plain = replace(recipe(tmp_path, method="manual", init="auto"), length=None, lr=None, max_steps=None)
    result = train(lm, replace(plain, calibrate=True))
    assert result.task.bias is not None
    with Engine(lm, cache_bytes=1 << 20) as engine:
        raw = classify(engine, replace(result.task, bias=None), [{"text": text} for text in ("N/A", "[MASK]")])
        found = classify(engine, result.task, [{"text": "xa"}])[0]
        bare = classify(engine, replace(result.task, bias=None), [{"text": "xa"}])[0]
    prior = {label: sum(row[label] for row in raw) / 2 for label in ("y", "n")}
    ratio = (bare["y"] / prior["y"]) / (bare["n"] / prior["n"])
    assert found["y"] / found["n"] == pytest.approx(ratio, rel=1e-3)


@pytest.mark.parametrize("changes", [{"accumulate": 4}, {"checkpointing": True}], ids=["parts", "checkpointing"])
def test_less_memory_gives_the_same_prefix(changes, tmp_path):
    lm = tiny_model("llama")
    first = train(lm, recipe(tmp_path, max_steps=8)).task.prefix
    again = train(lm, recipe(tmp_path, max_steps=8, out=str(tmp_path / "again"), **changes)).task.prefix
    for one, other in zip((*first.keys, *first.values), (*again.keys, *again.values), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)
    assert not any(module.training for module in lm.model.modules())


def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    wrong = write_jsonl(tmp_path / "wrong.jsonl", examples(24, 2, {"a": "n", "b": "y"}))
    result = train(tiny_model("llama"), recipe(tmp_path, eval=wrong, max_steps=100, patience=1))
    steps = [entry["step"] for entry in json.loads((result.folder / "history.json").read_text())["log"]]
    assert max(steps) < 100


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_its_checkpoint(tmp_path, monkeypatch):
    from foreword.training.modules.losses import LabelLoss

    whole, calls = LabelLoss.total, []

    def total(loss, lm, front, batch):
        calls.append(1)  # the first is the proof that gradients reach the prompt
        return whole(loss, lm, front, batch) * (float("nan") if len(calls) == 21 else 1.0)

    monkeypatch.setattr(LabelLoss, "total", total)
    settings = recipe(tmp_path)
    with pytest.raises(TrainingError, match=r"the loss of step 20 is nan; the last good checkpoint is .*checkpoint-16"):
        train(tiny_model("llama"), settings)
    assert (Path(settings.out) / "checkpoints" / "checkpoint-16" / "trainer_state.json").is_file()


def test_what_went_wrong_is_said_with_what_to_try(tmp_path, capsys):
    noise = [{"text": "x" * (1 + index % 3), "label": "ny"[index % 2]} for index in range(24)]
    held = [{"text": "x", "label": "y"}] * 23 + [{"text": "x", "label": "n"}]
    data = {"data": write_jsonl(tmp_path / "t.jsonl", noise), "eval": write_jsonl(tmp_path / "e.jsonl", held)}
    settings = recipe(tmp_path, lr=1e-9, max_steps=20, **data)
    train(tiny_model("llama"), settings)
    assert "the loss did not fall" in capsys.readouterr().err
    said = advice(Run.from_recipe(tiny_model("llama"), settings), [], {"accuracy": 0.9}, {"accuracy": 0.5})
    assert "is under the 0.958 of always saying 'y'; try" in said[0]
    assert said[1].startswith("what was learned is worse than nothing; try")


def test_a_warm_start_learns_from_other_data_too(tmp_path, capsys):
    """The same rule in other words: after the warm start a few steps will do, which alone they do not."""
    lm = tiny_model("llama")
    data = write_jsonl(tmp_path / "other.jsonl", [{"line": r["text"], "kind": r["label"]} for r in examples(48, 5)])
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps({"data": data, "template": "{line}{mask}", "label_field": "kind"}))
    result = train(lm, recipe(tmp_path, warm_start=[str(other)], max_steps=30))
    said = capsys.readouterr().err
    assert f"warm start on {data}: loss" in said
    assert result.metrics["accuracy"] > 0.95
    other.write_text(json.dumps({"data": data, "lr": 1.0}))
    with pytest.raises(UsageError, match=r"line 1: there is no key 'lr'; it takes columns, data, delimiter, head"):
        train(lm, recipe(tmp_path, warm_start=[str(other)], out=str(tmp_path / "b")))


def test_a_run_folder_has_its_curves_and_history(tmp_path):
    result = train(tiny_model("llama"), recipe(tmp_path, max_steps=20))
    assert (result.folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "loss" in json.loads((result.folder / "history.json").read_text())["log"][0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "lora"}, "--method lora has no virtual tokens, so leave --length out"),
        ({"rank": 4}, "rank"),
        (
            {"template": "{soft:2}{text}{mask}"},
            "p-tuning-v2 does not learn; use --method p-tuning, or take them out and give their number as --length",
        ),
        ({"template": "{soft:2}{text}{mask}", "method": "p-tuning"}, "--length 16 contradicts the 2 soft tokens"),
        ({"head": "linear"}, "a linear head"),
        ({"template": ["{text}{mask}", "{text}{target:label}"]}, "have different answers"),
        ({"template": "{text}{target:label}", "calibrate": True}, "--calibrate is for labels"),
        ({"class_weights": '{"z": 2}'}, "names 'z', which is no label"),
        ({"accumulate": 99}, "--accumulate 99 is more than the 16 examples"),
        ({"head": "deep"}, "--head must be verbalizer or linear"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, sentence, tmp_path):
    with pytest.raises(UsageError) as caught:
        train(tiny_model("llama"), recipe(tmp_path, **changes))
    assert sentence in str(caught.value)


def test_a_text_to_start_from_keeps_its_beginning(tmp_path):
    run = Run.from_recipe(tiny_model("llama"), recipe(tmp_path, init="text", init_text="hello", length=3))
    start = initializer(run.lm, run.recipe, run.method, run.data, None, 3)(3, torch.Generator())
    assert run.lm.tokenizer.decode(start.token_ids) == "hel"


def test_class_weights_reach_the_loss(tmp_path):
    run = Run.from_recipe(tiny_model("llama"), recipe(tmp_path, class_weights="balanced"))
    weights = run.loss(run.initial_prompt()).class_weights
    counts = [sum(example.labels == (label,) for example in run.examples) for label in range(2)]
    torch.testing.assert_close(weights, torch.tensor([48 / (2 * count) for count in counts]))
