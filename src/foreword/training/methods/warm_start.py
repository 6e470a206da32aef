"""A warm start: an encoder trained on several data sets at once, before a run goes on with its own (P-tuning v2's
multi-task learning, Liu et al. 2022, arXiv:2110.07602, section 3.3).

The encoder is shared, every data set has its own templates, verbalizer and head, and they take turns, a step each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foreword.errors import TrainingError, UsageError
from foreword.progress import Say
from foreword.training.data.examples import examples_of
from foreword.training.modules.losses import mean_loss
from foreword.training.modules.trainable_prompt import TrainablePrompt
from foreword.training.recipe import Recipe
from foreword.training.recipe_file import RecipeFile
from foreword.training.run import Run

# Keys of a warm start's recipe; all other settings are those of the run that it is for.
WARM_START_KEYS = (
    "data",
    "columns",
    "delimiter",
    "template",
    "verbalizer",
    "label_field",
    "target_field",
    "head",
    "learn_turns",
)


def warm_start_runs(run: Run) -> list[Run]:
    """Runs on the further data sets of the run's recipe. Raises UsageError or a subclass, naming the recipe file."""
    return [_read_run(run, file) for file in run.recipe.warm_start or ()]


def warm_start(runs: Sequence[Run], prompt: TrainablePrompt, say: Say) -> None:
    """Train the encoder of ``prompt`` on the data of all runs; their heads are dropped afterwards.

    Args:
        runs: the run that goes on afterwards, whose steps and learning rate count, then the others.

    Raises TrainingError if the loss is not finite.
    """
    lr, steps = runs[0].lr, runs[0].steps
    prompts = [run.initial_prompt(prompt.encoder) for run in runs]
    losses = [run.loss(own) for run, own in zip(runs, prompts, strict=True)]
    schedules = [run.with_steps(-(-steps // len(runs))).batches for run in runs]
    # All have the same encoder, and each a head of its own.
    groups = list({id(group["params"][0]): group for own in prompts for group in own.param_groups(lr)}.values())
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    rates = [group["lr"] for group in groups]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1)
    history: list[list[float]] = [[] for _ in runs]
    for step in range(steps):
        turn, index = divmod(step, len(runs))
        run = runs[index]
        loss = mean_loss(losses[index], run.lm, prompt.front(), examples_of(run.examples, schedules[index][turn]))
        if not bool(loss.detach().isfinite()):
            raise TrainingError(f"the loss of step {step + 1} of the warm start is {loss.item()}; try a smaller --lr.")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        history[index].append(float(loss.detach()))
    for run, values in zip(runs, history, strict=True):
        say(f"warm start on {run.recipe.data}: loss {_mean(values[:5]):.3f} -> {_mean(values[-5:]):.3f}")


def _read_run(run: Run, file: str) -> Run:
    """The run on the data of a warm start's recipe."""
    recipe_file, own = RecipeFile.read(file), run.recipe
    recipe_file.check_keys(WARM_START_KEYS)
    if "data" not in recipe_file.values:
        raise UsageError(f"recipe {file} of --warm-start names no data; write 'data: FILE'.")
    with recipe_file.locate_errors():
        recipe = Recipe(
            **recipe_file.values,
            method=own.method,
            length=own.length,
            seed=own.seed,
            batch_size=own.batch_size,
            long_rows=None if own.long_rows is not None and own.long_rows.startswith("cut ") else own.long_rows,
            max_length=own.max_length,
            init=own.init if own.parent is None else "random",
            init_text=own.init_text,
            **own.method_options,
        )
        other = Run.from_recipe(run.lm, recipe)
    if other.length != run.length:
        raise UsageError(f"recipe {file} of --warm-start has {other.length} virtual tokens, the run {run.length}.")
    return other


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
