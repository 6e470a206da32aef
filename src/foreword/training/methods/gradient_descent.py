"""Gradient descent: trains one prompt encoder, or an ensemble of prefixes with different seeds."""

from __future__ import annotations

from dataclasses import replace

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import SettingError
from foreword.progress import Say
from foreword.prompts.lora import LoRA
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.selection import best_task, evaluate_task, format_metrics
from foreword.training.loop.trainer import fit
from foreword.training.methods.base import MethodResult
from foreword.training.methods.warm_start import warm_start, warm_start_runs
from foreword.training.modules.trainable_prompt import TrainablePrompt
from foreword.training.run import Run


def check(run: Run) -> None:
    """Raise SettingError for an ensemble of anything but plain prefixes, which alone can be served side by side.

    Raises DataError or another UsageError for a warm start that cannot be read.
    """
    method, inner = run.method, run.data.num_inner_soft_tokens(run.lm.causal)
    prefixes = method.length and not isinstance(method, LoRA) and not inner
    if run.recipe.members > 1 and not run.data.labels:
        raise SettingError(
            "members", "--members combines the labels of prefixes, and this run generates text; leave it out."
        )
    if run.recipe.members > 1 and (not prefixes or run.data.head_labels):
        what = "a head" if run.data.head_labels else f"--method {method.name} here"
        raise SettingError(
            "members", f"--members is for prefixes alone, and {what} has more or less than that; leave it out."
        )
    warm_start_runs(run)


def train(
    run: Run, engine: EngineProtocol, task: Task, prompt: TrainablePrompt, run_dir: RunDir, say: Say
) -> MethodResult:
    """Train every member of the ensemble, mostly one, and choose the template that serves it best."""
    if run.recipe.warm_start and run_dir.newest_checkpoint() is None:
        warm_start([run, *warm_start_runs(run)], prompt, say)
    members, parameters = [], 0
    for index in range(run.recipe.members):
        member = run if index == 0 else run.with_seed(run.recipe.seed + index)
        trained = prompt if index == 0 else member.initial_prompt()
        member_dir = run_dir if index == 0 else run_dir.subdir(f"member-{index + 1}")
        fit(member, trained, TaskEvaluator(member, engine, task, trained), member_dir)
        members.append(trained.to_task(run.lm, task))
        parameters += trained.num_trainable_parameters
        if run.recipe.members > 1:
            say(f"member {index + 1}: {format_metrics(evaluate_task(run, engine, members[-1]).metrics)}")
    ensemble = replace(members[0], members=tuple(member.prefix for member in members[1:]))
    return MethodResult(*best_task(run, engine, run.data.tasks(ensemble)), parameters)
