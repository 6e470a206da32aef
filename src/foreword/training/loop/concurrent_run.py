"""`ConcurrentRun`: one run's place among others that learn in the same batches; all that is its own is here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.optimization import get_scheduler

from foreword.models.packed_linear import release
from foreword.training.data.examples import Example
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.loop.losses import LossInputs
from foreword.training.loop.trainable_prompt import TrainablePrompt
from foreword.training.loop.trainer import arguments, optimizer


class ConcurrentRun:
    """What a run of `PrefixTrainer` does by itself, cut into steps that others may take at the same time.

    The optimizer, its schedule, the clipping of gradients, the evaluations, early stopping and the choice of the best
    values are those of `arguments`, so that a run learns the same here as it does alone.

    Args:
        name: of the run among the others.
        scorer: the run, what it learns, and how that is measured.

    Attributes:
        step: optimizer steps done.
        best: the score and the step of the best values so far; ``None`` before the first evaluation.
        failed: why it cannot go on; empty if it can.
        log: loss and learning rate of every step since the last evaluation, then the evaluation's figures, as the
            Trainer's history has them.
    """

    def __init__(self, name: str, scorer: TaskEvaluator) -> None:
        self.name, self.scorer, self.run = name, scorer, scorer.run
        self.step, self.failed = 0, ""
        self.best: tuple[float, int] | None = None
        self.log: list[dict[str, float]] = []
        self._settings = arguments(self.run, Path())
        self._loss = self.run.shared_loss(self.learned)
        self._batches = self.run.batches
        self._optimizer = optimizer(self._settings, self.learned)
        warm_up = self._settings.get_warmup_steps(self.run.steps)
        self._rate = get_scheduler(self._settings.lr_scheduler_type, self._optimizer, warm_up, self.run.steps)
        self._best_values: dict[str, Tensor] = {}
        self._stale = 0
        self._sums: list[float] = []
        release(self.run.lm.model)  # what initial values and first scores were computed by

    @property
    def learned(self) -> TrainablePrompt:
        return self.scorer.learned

    @property
    def steps(self) -> int:
        """Optimizer steps in all, if nothing ends it before."""
        return self.run.steps

    @property
    def ended(self) -> bool:
        """Whether it has learned all that it will: to its last step, without getting better, or astray."""
        patience = self.run.recipe.patience
        return bool(self.failed) or self.step >= self.steps or (patience is not None and self._stale >= patience)

    @property
    def due(self) -> bool:
        """Whether the step just done is one that is evaluated."""
        return self.step >= self.steps or self.step % int(self._settings.eval_steps or 0) == 0

    @property
    def batch(self) -> list[Example]:
        """The examples of the next step."""
        return [self.run.examples[draw.place].at(draw.turn) for draw in self._batches[self.step]]

    def ask(self, examples: Sequence[Example]) -> LossInputs:
        """Examples behind what has been learned so far, ready to be run with others'."""
        return self._loss.ask(self.run.lm, self.learned.front(), examples)

    def share(self, total: Tensor) -> Tensor | None:
        """The part of the step's mean loss that a sum over some of its examples is; ``None`` if it is no number, which
        ends the run, and nobody else's."""
        value = float(total.detach())
        if not math.isfinite(value):
            self.failed = f"the loss of step {self.step + 1} is {value}; start again with a smaller --lr"
            return None
        self._sums.append(value)
        return total / self._loss.weight(self.batch)

    def update(self) -> None:
        """One step of the optimizer, from the gradients of all shares."""
        torch.nn.utils.clip_grad_norm_(self.learned.parameters(), self._settings.max_grad_norm)
        rate = float(self._rate.get_last_lr()[0])
        loss = sum(self._sums) / self._loss.weight(self.batch)
        self._optimizer.step()
        self._rate.step()
        self.forget()
        self.step += 1
        self.log.append({"step": self.step, "loss": loss, "learning_rate": rate})

    def forget(self) -> None:
        """Drop the gradients of a step."""
        self._optimizer.zero_grad(set_to_none=True)
        self._sums = []

    def judge(self, metrics: Mapping[str, float]) -> None:
        """Keep the values if they are the best so far; a loss that is no number ends the run."""
        self.log.append({"step": self.step, **{f"eval_{name}": value for name, value in metrics.items()}})
        if not math.isfinite(metrics["loss"]):
            self.failed = f"the loss after step {self.step} is no longer a number; start again with a smaller --lr"
        elif self.best is None or metrics["score"] > self.best[0]:
            self.best, self._stale = (metrics["score"], self.step), 0
            self._best_values = {name: value.clone() for name, value in self.learned.state_dict().items()}
        else:
            self._stale += 1

    def settle(self) -> None:
        """Leave the best values in what was learned."""
        if self._best_values:
            self.learned.load_state_dict(self._best_values)

    def tensors(self) -> dict[str, Tensor]:
        """All values that it goes on from, by name."""
        moments = {
            f"optimizer.{place}.{name}": value
            for place, state in self._optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        now = {f"now.{name}": value for name, value in self.learned.state_dict().items()}
        return moments | now | {f"best.{name}": value for name, value in self._best_values.items()}

    def state(self) -> dict[str, Any]:
        """Where it stands besides, as JSON values."""
        place = {"step": self.step, "stale": self._stale, "best": self.best, "log": self.log}
        return {**place, "rate": self._rate.state_dict()}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` and `tensors` gave, to the last bit."""
        self.step, self._stale, self.log = state["step"], state["stale"], list(state["log"])
        self.best = tuple(state["best"]) if state["best"] is not None else None
        self.learned.load_state_dict(_below("now.", tensors))
        self._best_values = _below("best.", tensors)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _below("optimizer.", tensors).items():
            place, _, name = key.partition(".")
            moments.setdefault(int(place), {})[name] = value
        self._rate.load_state_dict(dict(state["rate"]))
        groups = self._optimizer.state_dict()["param_groups"]
        for group, rate in zip(groups, self._rate.get_last_lr(), strict=True):
            group["lr"] = rate
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
