"""`ConcurrentRun`: the training state of one run among others that share its forwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.optimization import get_scheduler

from foreword.models.packed_linear import release_packed_weights
from foreword.training.data.examples import Example, examples_of
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.loop.trainer import make_optimizer, training_arguments
from foreword.training.modules.losses import LossInputs
from foreword.training.modules.trainable_prompt import TrainablePrompt


class ConcurrentRun:
    """One run of `ConcurrentTrainer`: its optimizer, schedule, evaluations and best values.

    The optimizer, its schedule, gradient clipping, evaluations, early stopping and the choice of the best values are
    those of `training_arguments`, so that a run learns the same here as by `PrefixTrainer`.

    Args:
        name: of the run among the others.
        evaluator: metrics of the prompt; has the run, too.

    Attributes:
        step: optimizer steps done.
        best: the score and the step of the best values so far; ``None`` before the first evaluation.
        error: why training cannot go on; empty if it can.
        log_history: loss and learning rate of every step, and the metrics of every evaluation, as in the Trainer's
            state.
    """

    def __init__(self, name: str, evaluator: TaskEvaluator) -> None:
        self.name, self.evaluator, self.run = name, evaluator, evaluator.run
        self.step, self.error = 0, ""
        self.best: tuple[float, int] | None = None
        self.log_history: list[dict[str, float]] = []
        self._arguments = training_arguments(self.run, Path())
        self._loss = self.run.shared_loss(self.prompt)
        self._batches = self.run.batches
        self._optimizer = make_optimizer(self._arguments, self.prompt)
        warm_up = self._arguments.get_warmup_steps(self.run.steps)
        self._scheduler = get_scheduler(self._arguments.lr_scheduler_type, self._optimizer, warm_up, self.run.steps)
        self._best_values: dict[str, Tensor] = {}
        self._evaluations_since_best = 0
        self._totals: list[float] = []
        release_packed_weights(self.run.lm.model)  # initial values and first evaluations packed the weights

    @property
    def prompt(self) -> TrainablePrompt:
        return self.evaluator.prompt

    @property
    def steps(self) -> int:
        """Optimizer steps in all, unless it is stopped early."""
        return self.run.steps

    @property
    def finished(self) -> bool:
        """Whether it was trained to its last step, stopped early, or failed."""
        patience = self.run.recipe.patience
        stopped = patience is not None and self._evaluations_since_best >= patience
        return bool(self.error) or self.step >= self.steps or stopped

    @property
    def should_evaluate(self) -> bool:
        """Whether the step just done is one that is evaluated."""
        return self.step >= self.steps or self.step % int(self._arguments.eval_steps or 0) == 0

    @property
    def next_batch(self) -> list[Example]:
        """The examples of the next step."""
        return examples_of(self.run.examples, self._batches[self.step])

    @property
    def micro_batches(self) -> int:
        """Parts that gradients are accumulated over."""
        return self.run.recipe.accumulate

    def micro_batch(self, part: int) -> list[Example]:
        """One part of the next batch; empty behind the last."""
        return self.next_batch[part :: self.micro_batches] if part < self.micro_batches else []

    def forward_inputs(self, examples: Sequence[Example]) -> LossInputs:
        """Examples behind the prompt, for a forward that is shared with other runs."""
        return self._loss.forward_inputs(self.run.lm, self.prompt.front(), examples)

    def part_of_loss(self, total: Tensor) -> Tensor | None:
        """The part of the step's mean loss that a sum over some of its examples is; ``None`` if it is not finite, which
        is an error of this run alone."""
        value = float(total.detach())
        if not math.isfinite(value):
            self.error = f"the loss of step {self.step + 1} is {value}; start again with a smaller --lr"
            return None
        self._totals.append(value)
        return total / self._loss.normalizer(self.next_batch)

    def optimizer_step(self) -> None:
        """Clip the gradients, and step optimizer and schedule."""
        torch.nn.utils.clip_grad_norm_(self.prompt.parameters(), self._arguments.max_grad_norm)
        lr = float(self._scheduler.get_last_lr()[0])
        loss = sum(self._totals) / self._loss.normalizer(self.next_batch)
        self._optimizer.step()
        self._scheduler.step()
        self.zero_grad()
        self.step += 1
        self.log_history.append({"step": self.step, "loss": loss, "learning_rate": lr})

    def zero_grad(self) -> None:
        """Drop the gradients of a step."""
        self._optimizer.zero_grad(set_to_none=True)
        self._totals = []

    def record_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Log metrics, and copy the values if their score is the best so far; a loss that is not finite is an error."""
        self.log_history.append({"step": self.step, **{f"eval_{name}": value for name, value in metrics.items()}})
        if not math.isfinite(metrics["loss"]):
            self.error = f"the loss after step {self.step} is no longer a number; start again with a smaller --lr"
        elif self.best is None or metrics["score"] > self.best[0]:
            self.best, self._evaluations_since_best = (metrics["score"], self.step), 0
            self._best_values = {name: value.clone() for name, value in self.prompt.state_dict().items()}
        else:
            self._evaluations_since_best += 1

    def load_best(self) -> None:
        """Put the best values into the prompt."""
        if self._best_values:
            self.prompt.load_state_dict(self._best_values)

    def state_tensors(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint, by name: present values, best values and moments of the optimizer."""
        moments = {
            f"optimizer.{index}.{name}": value
            for index, state in self._optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        now = {f"now.{name}": value for name, value in self.prompt.state_dict().items()}
        return moments | now | {f"best.{name}": value for name, value in self._best_values.items()}

    def state_json(self) -> dict[str, Any]:
        """The rest of a checkpoint, as JSON values."""
        return {
            "step": self.step,
            "stale": self._evaluations_since_best,
            "best": self.best,
            "log": self.log_history,
            "rate": self._scheduler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state_json` and `state_tensors` gave, bit for bit."""
        self.step, self.log_history = state["step"], list(state["log"])
        self._evaluations_since_best = state["stale"]
        self.best = tuple(state["best"]) if state["best"] is not None else None
        self.prompt.load_state_dict(_without_prefix("now.", tensors))
        self._best_values = _without_prefix("best.", tensors)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _without_prefix("optimizer.", tensors).items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = value
        self._scheduler.load_state_dict(dict(state["rate"]))
        groups = self._optimizer.state_dict()["param_groups"]
        for group, lr in zip(groups, self._scheduler.get_last_lr(), strict=True):
            group["lr"] = lr
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, named without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
