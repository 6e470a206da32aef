"""Learning by an optimizer: one prompt encoder, or an ensemble of them with different seeds."""

from __future__ import annotations

from dataclasses import replace

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import SettingError
from foreword.prompts.lora import LoRA
from foreword.training.loop.baseline import best_task, format_metrics, report_of
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.loop.fit import fit
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.trainable_prompt import TrainablePrompt
from foreword.training.methods.base import MethodResult, Say
from foreword.training.methods.warm_start import WarmStart
from foreword.training.run import Run


def check(run: Run) -> None:
    """Raise UsageError for an ensemble of more, or of less, than prefixes: only they stand beside one another.

    Raises DataError and its kin for a warm start that cannot be read.
    """
    method, template = run.method, run.material.template
    prefixes = method.length and not isinstance(method, LoRA) and not template.inner_soft(run.lm.causal)
    if run.recipe.members > 1 and (not prefixes or run.material.head_labels):
        what = "a head" if run.material.head_labels else f"--method {method.name} here"
        raise SettingError(
            "members", f"--members is for prefixes alone, and {what} has more or less than that; leave it out."
        )
    WarmStart.of(run)


def learn(
    run: Run, engine: EngineProtocol, task: Task, start: TrainablePrompt, folder: RunDir, say: Say
) -> MethodResult:
    """Learn every member of the ensemble, mostly one, and choose the template that serves it best."""
    if run.recipe.warm_start and folder.newest_checkpoint() is None:
        WarmStart.of(run).learn(start, say)
    made, parameters = [], 0
    for index in range(run.recipe.members):
        member = run if index == 0 else run.with_seed(run.recipe.seed + index)
        learned = start if index == 0 else member.learned()
        fit(
            TaskEvaluator(member, engine, task, learned), folder if index == 0 else folder.inside(f"member-{index + 1}")
        )
        made.append(learned.become(run.lm, task))
        parameters += learned.parameter_count
        if run.recipe.members > 1:
            say(f"member {index + 1}: {format_metrics(report_of(run, engine, made[-1]).metrics)}")
    together = replace(made[0], members=tuple(member.prefix for member in made[1:]))
    tasks = [replace(together, template=template.source) for template in run.material.templates]
    chosen, report = best_task(run, engine, tasks)
    return MethodResult(chosen, report, parameters)
