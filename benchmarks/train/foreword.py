"""Foreword: the Trainer's own module, its loss and its batches, with a plain optimizer around them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.memory import PeakMemory
from benchmarks.train.encoders import encoder
from benchmarks.train.methods import METHODS
from foreword.bench.worker import Handlers
from foreword.models.load import load_model, pull
from foreword.training.data.examples import Example
from foreword.training.modules.prompt_module import PromptModule
from foreword.training.modules.trainable_prompt import TrainablePrompt
from foreword.training.recipe import Recipe
from foreword.training.run import Run


def start(settings: Mapping[str, Any]) -> Handlers:
    """Load the model and make everything ready for the first step."""
    method = METHODS[settings["method"]]
    lm = load_model(settings["model"], dtype=settings["dtype"], device="cpu")
    recipe = Recipe(
        data=settings["data"],
        eval=settings["data"],
        method=method.name,
        template=settings["template"],
        length=settings["length"],
        seed=settings["seed"],
    )
    run = Run.from_recipe(lm, recipe)
    learned = TrainablePrompt(encoder(run))
    ours = ForewordTraining(run, learned, _shuffled(run.examples, settings["batch_size"], settings["seed"]), method.lr)
    return {
        "batches": ours.tokens,
        "folder": lambda: str(pull(settings["model"], print)),
        "memory": PeakMemory(),
        "initial": lambda path: _save(learned, method.peft_name, path),
        "step": ours.step,
        "trained_parameters": lambda: learned.num_trainable_parameters,
    }


class ForewordTraining:
    def __init__(self, run: Run, learned: TrainablePrompt, batches: list[list[Example]], lr: float) -> None:
        self._batches = batches
        self._loss = run.loss(learned)
        self._learner = PromptModule(run.lm, learned, self._loss)
        self._optimizer = torch.optim.AdamW(learned.parameters(), lr, weight_decay=0.0)

    def tokens(self, count: int) -> list[list[list[Sequence[int]]]]:
        """Prompt and target of every example of the first batches, for PEFT."""
        return [[[example.prompt_ids, example.target] for example in self._batch(turn)] for turn in range(count)]

    def step(self, turn: int) -> dict[str, float]:
        examples = self._batch(turn)
        began = time.perf_counter()
        loss = self._learner(examples, self._loss.normalizer(examples))["loss"]
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {"seconds": time.perf_counter() - began, "loss": float(loss.detach())}

    def _batch(self, turn: int) -> list[Example]:
        return self._batches[turn % len(self._batches)]


def _shuffled(examples: Sequence[Example], size: int, seed: int) -> list[list[Example]]:
    """One pass over the examples in random order: the order that a data loader has unless told otherwise."""
    order = random.Random(seed).sample(range(len(examples)), len(examples))
    whole = range(0, len(order) - size + 1, size)
    return [[examples[place] for place in order[first : first + size]] for first in whole]


def _save(learned: TrainablePrompt, name: Callable[[str], str], path: str) -> None:
    """The values that learning starts from, by the names that PEFT has for them."""
    values: Any = learned.encoder.values
    save_file({name(key): tensor.contiguous() for key, tensor in values.state_dict().items()}, path)
