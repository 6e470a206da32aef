"""Full fine-tuning: every weight of the model, by the loss and the batches of Foreword's own runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.loop import learn
from benchmarks.quality.scoring import evaluated, model_size
from foreword.core import Front, Task
from foreword.engine.engine import Engine
from foreword.models import load_model
from foreword.prompts.manual import NoPrompt
from foreword.training.data.examples import examples_of
from foreword.training.loop.evaluator import EVAL_CACHE_BYTES, TaskEvaluator
from foreword.training.modules.trainable_prompt import TrainablePrompt
from foreword.training.recipe import Recipe
from foreword.training.run import Run

# A head begins with nothing: at the rate of the weights it would end with nothing.
HEAD_RATE = 1e-3


def figures(settings: Mapping[str, Any]) -> dict[str, Any]:
    lm = load_model(settings["model"], device="cpu")
    run = Run.from_recipe(lm, Recipe(**settings["recipe"]))
    learned = TrainablePrompt(NoPrompt(), run.initial_prompt().head)
    task = replace(run.task("full"), method="full")
    weights = [weight.requires_grad_() for weight in lm.model.parameters()]
    began = time.perf_counter()
    with Engine(lm, cache_bytes=EVAL_CACHE_BYTES, reuse=False) as engine:  # its weights change
        _learn(run, learned, weights, TaskEvaluator(run, engine, task, learned))
    seconds = time.perf_counter() - began
    figures = evaluated(lm, learned.to_task(lm, task), settings)
    changed = sum(weight.numel() for weight in weights)
    return {
        **figures,
        "trained_parameters": changed + learned.num_trainable_parameters,
        "model_parameters": model_size(lm),
        "task_bytes": sum(weight.numel() * weight.element_size() for weight in weights) + _head_bytes(task),
        "seconds": seconds,
    }


def _learn(run: Run, learned: TrainablePrompt, weights: list[Tensor], scorer: TaskEvaluator) -> None:
    """Leave the best weights in the model, and the best head in ``learned``."""
    head = list(learned.parameters())
    # bfloat16 cannot hold steps as small as these, so they are summed in float32.
    masters = [weight.detach().float().clone() for weight in weights]
    loss, batches = run.loss(learned), run.batches
    best: list[Tensor] = []

    def backward(step: int) -> None:
        examples = examples_of(run.examples, batches[step])
        (loss.total(run.lm, Front(), examples) / loss.normalizer(examples)).backward()
        for master, weight in zip(masters, weights, strict=True):
            master.grad = weight.grad.float() if weight.grad is not None else None
            weight.grad = None

    def changed() -> None:
        _copy(masters, weights)

    def keep() -> None:
        best[:] = [value.detach().clone() for value in (*weights, *head)]

    learn(
        [(masters, run.lr), (head, HEAD_RATE)],
        run.steps,
        backward=backward,
        changed=changed,
        score=lambda: scorer()["score"],
        keep=keep,
    )
    _copy(best, [*weights, *head])


@torch.no_grad()
def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for new, old in zip(source, target, strict=True):
        old.copy_(new)


def _head_bytes(task: Task) -> int:
    return sum(t.numel() * t.element_size() for t in (task.head.weight, task.head.bias)) if task.head else 0
