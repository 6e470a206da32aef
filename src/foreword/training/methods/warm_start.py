"""A warm start: values learned on several data sets at once, before a run goes on with its own (P-tuning v2's
multi-task learning, Liu et al. 2022, arXiv:2110.07602, section 3.3).

The encoder is shared, every data set has its own templates, words and head, and they take turns, a step each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from foreword.errors import TrainingError, UsageError
from foreword.training.loop.losses import mean_loss
from foreword.training.loop.trainable_prompt import TrainablePrompt
from foreword.training.recipe import Recipe
from foreword.training.recipe_file import RecipeFile
from foreword.training.run import Run

# What a warm start's recipe says; the rest is that of the run that it is for.
KEYS = ("data", "template", "verbalizer", "label_field", "target_field", "head")


@dataclass(frozen=True)
class WarmStart:
    """Runs whose data sets are learned together.

    Attributes:
        runs: the run that goes on afterwards, then the others.
    """

    runs: tuple[Run, ...]

    @classmethod
    def of(cls, run: Run) -> WarmStart:
        """Read the other data sets. Raises UsageError and its kin, naming the recipe."""
        return cls((run, *(_other(run, file) for file in run.recipe.warm_start or ())))

    def learn(self, learned: TrainablePrompt, say: Callable[[str], None]) -> None:
        """Leave in the encoder of ``learned`` what all data sets have taught it together; heads are learned anew.

        Raises TrainingError if the loss is no longer a number.
        """
        lr = self.runs[0].lr
        together = [run.learned_with(learned.encoder) for run in self.runs]
        losses = [run.loss(each) for run, each in zip(self.runs, together, strict=True)]
        steps = self.runs[0].steps
        schedules = [run.with_steps(-(-steps // len(self.runs))).batches for run in self.runs]
        # All have the same encoder, and each a head of its own.
        groups = list({id(group["params"][0]): group for each in together for group in each.groups(lr)}.values())
        parameters = [parameter for group in groups for parameter in group["params"]]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        rates = [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1)
        values: list[list[float]] = [[] for _ in self.runs]
        for step in range(steps):
            which, turn = step % len(self.runs), step // len(self.runs)
            run = self.runs[which]
            batch = [run.examples[draw.place].at(draw.turn) for draw in schedules[which][turn]]
            loss = mean_loss(losses[which], run.lm, learned.front(), batch)
            _check(loss, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            values[which].append(float(loss.detach()))
        for run, found in zip(self.runs, values, strict=True):
            say(f"warm start on {run.recipe.data}: loss {_mean(found[:5]):.3f} -> {_mean(found[-5:]):.3f}")


def _other(run: Run, file: str) -> Run:
    found, own = RecipeFile.read(file), run.recipe
    found.check_keys(KEYS)
    if "data" not in found.values:
        raise UsageError(f"recipe {file} of --warm-start names no data; write 'data: FILE'.")
    with found.blamed():
        recipe = Recipe(
            **found.values,
            method=own.method,
            length=own.length,
            seed=own.seed,
            batch_size=own.batch_size,
            init=own.init if own.parent is None else "random",
            init_text=own.init_text,
            **own.options,
        )
        other = Run.of(run.lm, recipe)
    if other.length != run.length:
        raise UsageError(f"recipe {file} of --warm-start has {other.length} virtual tokens, the run {run.length}.")
    return other


def _check(loss: torch.Tensor, step: int) -> None:
    if not bool(loss.detach().isfinite()):
        raise TrainingError(f"the loss of step {step + 1} of the warm start is {loss.item()}; try a smaller --lr.")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
