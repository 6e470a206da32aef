"""Runs that learn in one batch learn what each learns alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from foreword.adapters import AdapterHooks
from foreword.core import Front, KVPrefix
from foreword.engine.engine import Engine
from foreword.errors import UsageError
from foreword.models.activations import activations
from foreword.models.packed_linear import PackedLinear, is_packing_supported
from foreword.prompts.init import from_text, random_values
from foreword.prompts.registry import get_method
from foreword.training.loop import concurrent
from foreword.training.loop.concurrent import ConcurrentTrainer
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.modules.losses import AnswerLoss, shared_forward_totals
from foreword.training.modules.prompt_module import PromptModule
from foreword.training.modules.trainable_prompt import TrainablePrompt
from foreword.training.recipe import Recipe
from foreword.training.run import Run
from foreword.training.train import train
from prompts.test_gradients import EXAMPLES, example, perturbed
from tiny_models import CAUSAL, double, tiny_model
from training.small_data import ANSWERS, examples, recipe, write_jsonl

MORE = [example(120, 121, target=(122,)), example(*range(130, 144), target=(150, 151))]


@pytest.fixture(autouse=True)
def forgotten():
    """A forward with gradients leaves its adapters set until the next one, and `double` would copy them along."""
    yield
    for family in ("llama", "mistral"):
        AdapterHooks.of(tiny_model(family).model).clear()


def stored(lm, length: int, seed: int, grad: bool = False) -> KVPrefix:
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int, dim: int) -> torch.Tensor:
        drawn = torch.randn(heads, length, dim, generator=generator, dtype=torch.float64)
        return drawn.to(lm.dtype).requires_grad_(grad)

    shapes = lm.identity.layers
    keys = tuple(draw(shape.kv_heads, shape.key_dim) for shape in shapes)
    return KVPrefix(lm.identity, keys, tuple(draw(s.kv_heads, s.value_dim) for s in shapes), offset=length)


def fronts(lm, grad: bool = False) -> list[Front]:
    """Stored prefixes of the same length and of another, soft tokens alone and behind a prefix, an adapter, nothing."""
    generator = torch.Generator().manual_seed(3)

    def soft(length: int) -> torch.Tensor:
        drawn = torch.randn(length, lm.identity.hidden_size, generator=generator, dtype=torch.float64)
        return drawn.to(lm.dtype).requires_grad_(grad)

    adapted = perturbed(get_method("lora", rank=1).encoder(lm, random_values(0, generator)))
    return [
        Front(stored(lm, 9, 1, grad)),
        Front(stored(lm, 9, 2, grad)),
        Front(soft=soft(4)),
        Front(stored(lm, 4, 5, grad), soft=soft(5)),
        Front(),
        adapted.front(),
        Front(stored(lm, 4, 4, grad)),
    ]


def tensors(front: Front) -> list[torch.Tensor]:
    prefix = (*front.prefix.keys, *front.prefix.values) if front.prefix is not None else ()
    found = [*prefix, front.soft]
    if front.adapter is not None:
        found += [tensor for pair in front.adapter.layers.values() for tensor in (pair.down, pair.up)]
    return [tensor for tensor in found if tensor is not None and tensor.requires_grad]


def rows(index: int):
    """Two or three examples for each front, of different lengths."""
    every = [*EXAMPLES, *MORE]
    return [every[(index + step) % len(every)] for step in range(2 + index % 2)]


@pytest.mark.parametrize("family", CAUSAL)
def test_sums_and_gradients_in_one_forward_are_those_of_each_alone(family):
    lm = tiny_model(family)
    each = fronts(lm, grad=True)
    loss = AnswerLoss()
    found = shared_forward_totals(lm, [loss.forward_inputs(lm, front, rows(index)) for index, front in enumerate(each)])
    for index, front in enumerate(each):
        alone = loss.total(lm, front, rows(index))
        torch.testing.assert_close(found[index], alone, atol=1e-5, rtol=1e-5)
        if wanted := tensors(front):
            shared = torch.autograd.grad(found[index], wanted, retain_graph=True)
            torch.testing.assert_close(shared, torch.autograd.grad(alone, wanted), atol=1e-4, rtol=1e-3)


def test_nothing_reaches_anybody_elses_values():
    lm = tiny_model("llama")
    each = fronts(lm, grad=True)
    found = shared_forward_totals(
        lm, [AnswerLoss().forward_inputs(lm, front, rows(index)) for index, front in enumerate(each)]
    )
    others = [tensor for front in each[1:] for tensor in tensors(front)]
    reached = torch.autograd.grad(found[0], others, allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in reached)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_gradients_of_mixed_fronts_equal_finite_differences_in_float64(family):
    """The Mistral has a window of 6, which is shorter than prefixes and rows."""
    lm = double(family)
    made = [
        get_method(name).encoder(lm, from_text(lm, spelled)(length, torch.Generator()))
        for name, spelled, length in (
            ("p-tuning-v2", "abc", 3),
            ("p-tuning-v2", "xyz", 3),
            ("prompt-tuning", "ab", 2),
            ("prefix-tuning", "no", 2),
        )
    ]
    encoders = [perturbed(encoder) for encoder in made]
    still = stored(lm, 8, 6)
    parameters = [parameter for encoder in encoders for parameter in encoder.parameters()]
    factors = torch.tensor([1.0, -0.5, 2.0, 0.7], dtype=torch.float64)

    def weighed(*_: torch.Tensor) -> torch.Tensor:
        fronts = [encoder.front() for encoder in encoders]
        fronts[2] = replace(fronts[2], prefix=still)
        found = shared_forward_totals(
            lm, [AnswerLoss().forward_inputs(lm, front, rows(index)) for index, front in enumerate(fronts)]
        )
        return (torch.stack(found) * factors).sum()

    assert torch.autograd.gradcheck(weighed, parameters, atol=1e-7, rtol=1e-4, fast_mode=True)


def test_batches_with_computed_tokens_cannot_be_joined():
    lm = tiny_model("llama")
    batch = AnswerLoss().forward_inputs(lm, Front(), MORE).batch
    with pytest.raises(UsageError, match="belong to their engine"):
        type(batch).concat([batch, replace(batch, num_computed_tokens=(0,) * len(batch.lengths))])


def user(folder: Path, index: int, **changes) -> Recipe:
    """A user's own rows; every second one has the opposite opinion."""
    opposite = dict(zip(ANSWERS, reversed(ANSWERS.values()), strict=True))
    place = folder / f"user-{index}"
    place.mkdir(exist_ok=True)
    made = recipe(place, **{"max_steps": 12, "length": 5, "batch_size": 4, "seed": index, **changes})
    write_jsonl(place / "train.jsonl", examples(20 + index, 10 + index, opposite if index % 2 else ANSWERS))
    write_jsonl(place / "eval.jsonl", examples(9, 20 + index, opposite if index % 2 else ANSWERS))
    return made


def concurrent_run(lm, engine, settings: Recipe) -> ConcurrentRun:
    run = Run.from_recipe(lm, settings)
    return ConcurrentRun(str(settings.out), TaskEvaluator(run, engine, run.task("run"), run.initial_prompt()))


def difference(one: KVPrefix, other: KVPrefix) -> float:
    pairs = zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "p-tuning-v2"},
        {"method": "prompt-tuning", "template": "{text}{target:label}"},
        {"method": "prefix-tuning", "lr": 1e-3, "class_weights": "balanced"},
        {"method": "p-tuning-v2", "head": "linear", "template": "{text}", "accumulate": 2},
        {"method": "prefix-tuning", "head": "linear", "template": "{text}", "lr": 1e-3},
    ],
    ids=["p-tuning-v2", "prompt-tuning-answers", "prefix-tuning", "head-accumulated", "head-at-its-own-rate"],
)
def test_runs_together_learn_what_each_learns_alone(changes, tmp_path, monkeypatch):
    """One has fewer steps, one joins late, one stops early, and the batches are cut in two."""
    lm = tiny_model("llama")
    rate = changes.get("lr", 0.1)
    own = [{}, {"max_steps": 7, "lr": rate / 2}, {}, {"patience": 1, "lr": 2 * rate}]
    settings = [user(tmp_path, index, **{**changes, **own[index]}) for index in range(4)]
    monkeypatch.setattr(concurrent, "MAX_FORWARD_TOKENS", 90)
    with Engine(lm) as engine:
        runs = [concurrent_run(lm, engine, each) for each in settings]
        trainer = ConcurrentTrainer(lm, runs[:2])
        for _ in range(4):
            trainer.step()
        trainer.add(runs[2])
        trainer.add(runs[3])
        for ended in trainer.train():
            for each in ended:
                trainer.remove(each)
    assert trainer.runs == []
    for each, trained in zip(settings, runs, strict=True):
        alone = train(lm, each, say=lambda _: None).task
        trained.load_best()
        found = trained.prompt.to_task(lm, alone)
        assert difference(found.prefix, alone.prefix) < 1e-4
        if alone.head is not None and found.head is not None:
            torch.testing.assert_close(found.head.weight, alone.head.weight, atol=1e-4, rtol=0)
    assert runs[1].step == 7


def test_a_loss_that_is_no_number_ends_one_run_alone(tmp_path):
    lm = tiny_model("llama")
    settings = [user(tmp_path, index, **changes) for index, changes in enumerate(({}, {"lr": 1e38}, {}))]
    with Engine(lm) as engine:
        runs = [concurrent_run(lm, engine, each) for each in settings]
        for _ in ConcurrentTrainer(lm, runs).train():
            pass
        untouched = [concurrent_run(lm, engine, settings[index]) for index in (0, 2)]
        for _ in ConcurrentTrainer(lm, untouched).train():
            pass
    assert "is nan" in runs[1].error or "number" in runs[1].error
    assert "--lr" in runs[1].error
    assert runs[1].step < runs[0].step == 12
    for kept, alone in zip((runs[0], runs[2]), untouched, strict=True):
        assert not kept.error
        assert difference(kept.prompt.front().prefix, alone.prompt.front().prefix) < 1e-4


@pytest.mark.skipif(not is_packing_supported(torch.float32), reason="this PyTorch packs no weights")
def test_no_packed_weights_are_held_while_learning(tmp_path):
    def held() -> int:
        modules = (module for module in lm.model.modules() if isinstance(module, PackedLinear))
        return sum(module.fused._packed is not None for module in modules)

    lm = tiny_model("llama")
    with Engine(lm) as engine:
        some = concurrent_run(lm, engine, user(tmp_path, 0, method="p-tuning-v2", init="auto"))
        assert not held()  # initial values came from a forward
        with torch.no_grad():
            activations(lm, [1, 2, 3])
        assert held()
        PromptModule(lm, some.prompt, some.run.loss(some.prompt))
        assert not held()
        assert some.evaluator()["loss"] > 0
        assert not held()


def test_a_restored_run_goes_on_to_the_last_bit(tmp_path):
    """Its values do; what is measured of them in passing may differ in the last digit of a float32."""
    lm = tiny_model("llama")
    settings = [user(tmp_path, index, patience=3) for index in range(3)]
    with Engine(lm) as engine:
        runs = [concurrent_run(lm, engine, each) for each in settings]
        trainer = ConcurrentTrainer(lm, runs)
        for _ in range(7):
            trainer.step()
        kept = [
            (copy.deepcopy(each.state_json()), {k: v.clone() for k, v in each.state_tensors().items()}) for each in runs
        ]
        for _ in trainer.train():
            pass
        again = [concurrent_run(lm, engine, each) for each in settings]
        for each, (state, values) in zip(again, kept, strict=True):
            each.load_state(state, values)
        for _ in ConcurrentTrainer(lm, again).train():
            pass
    for one, other in zip(runs, again, strict=True):
        assert one.step == other.step
        assert one.best == pytest.approx(other.best, abs=1e-6)
        for found, expected in zip(one.log_history, other.log_history, strict=True):
            assert found == pytest.approx(expected, abs=1e-5)
        for a, b in zip(one.state_tensors().items(), other.state_tensors().items(), strict=True):
            assert a[0] == b[0]
            assert torch.equal(a[1], b[1])


def test_learned_values_are_the_best_seen(tmp_path):
    lm = tiny_model("llama")
    with Engine(lm) as engine:
        each = concurrent_run(lm, engine, user(tmp_path, 0))
        each.record_evaluation({"score": 0.5, "loss": 1.0})
        best = TrainablePrompt.state_dict(each.prompt)["encoder.values.inputs"].clone()
        with torch.no_grad():
            next(iter(each.prompt.parameters())).add_(1.0)
        each.record_evaluation({"score": 0.4, "loss": 1.0})
        each.load_best()
    assert torch.equal(each.prompt.state_dict()["encoder.values.inputs"], best)
