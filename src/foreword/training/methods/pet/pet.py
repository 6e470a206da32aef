"""PET: patterns that learn by themselves, and teach one model what they agree on (Schick and Schütze 2021,
arXiv:2001.07676).

All of it are ordinary runs. Every pattern learns in a folder of its own; their models label rows that have no label,
and a last run learns from these soft labels. With one pattern, or without such rows, there is only the last run,
through all patterns at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import EngineProtocol
from foreword.errors import SettingError
from foreword.evaluation.evaluate import evaluate
from foreword.evaluation.predict import classify
from foreword.text.rows import Row, read_rows
from foreword.text.template import Template
from foreword.training.loop.baseline import CACHE_BYTES, best_task, format_metrics, headline_metric, report_of
from foreword.training.loop.distributed import require_single_process
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.loop.fit import fit
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.trainable_prompt import TrainablePrompt
from foreword.training.methods.base import MethodResult, Say
from foreword.training.methods.full_finetuning import FullFinetuning
from foreword.training.methods.pet.pvp_run import PVPRun
from foreword.training.methods.pet.soft_labels import PatternPredictions, soft_labels
from foreword.training.run import Run

# Training rows by which patterns are trusted, evenly over all of them.
TRUST_ROWS = 256


def check(run: Run) -> None:
    """Raise UsageError unless there are words to fill patterns with and no flag that PET does not use; DataError or
    TemplateError that names the row without label that is wrong."""
    if run.material.verbalizer is None:
        raise SettingError(
            "method",
            "--method pet learns to fill {mask} with the words of labels; give such a --template, or use --method "
            "lora.",
        )
    run.recipe.refuse("members", "warm_start")
    if run.recipe.weights == "all":
        run.recipe.refuse("init", "calibrate", because="with --weights all")
        require_single_process("--weights all")
    run.reader.ask(_unlabeled(run))


def learn(
    run: Run, engine: EngineProtocol, task: Task, start: TrainablePrompt, folder: RunDir, say: Say
) -> MethodResult:
    """Let the patterns learn, and teach if they can; the task has an adapter, or belongs to a changed model."""
    unlabeled = _unlabeled(run)
    last = PVPRun.labelled(run, run.material.templates, unlabeled)
    if unlabeled and len(run.material.templates) > 1:
        last = PVPEnsemble(run, unlabeled, engine, task, folder, say).lesson()
    with _learned(last, engine, task, start, folder) as found:
        made, model = found.task, None
        if found.whole is not None:
            model = folder.path / "model"
            made = replace(made, prefix=replace(made.prefix, model=found.whole.save(model)))
        tasks = [replace(made, template=template.source) for template in last.material.templates]
        chosen, report = best_task(last, found.engine, tasks)
    return MethodResult(chosen, report, found.parameters, model)


@dataclass(frozen=True)
class PVPEnsemble:
    """Several patterns, and the rows without labels that they teach with.

    Attributes:
        run: with all patterns.
        unlabeled: the rows.
        engine: serves the model as it is.
        task: before anything is learned.
        folder: every pattern has its own inside.
        say: gets a line for every pattern.
    """

    run: Run
    unlabeled: Sequence[Row]
    engine: EngineProtocol
    task: Task
    folder: RunDir
    say: Say

    def lesson(self) -> PVPRun:
        """What they agree on, as a run through the pattern whose model is best on the evaluation rows."""
        templates = self.run.material.templates
        opinions = [self.opinion(number, template) for number, template in enumerate(templates, 1)]
        chosen = max(range(len(templates)), key=lambda at: opinions[at].held)
        self.say(f"{len(templates)} patterns teach pattern {chosen + 1} with {len(self.unlabeled)} rows")
        return PVPRun.taught(self.run, templates[chosen], self.unlabeled, soft_labels(opinions))

    def opinion(self, number: int, template: Template) -> PatternPredictions:
        """What a pattern's model says after it has learned, or has said before the run was interrupted."""
        folder = self.folder.inside(f"pattern-{number}")
        known = folder.state()
        if known is not None:
            return PatternPredictions.from_json(known)
        task = replace(self.task, template=template.source)
        trust = self._trust(task)
        run = PVPRun.labelled(self.run, [template], self.unlabeled)
        with _learned(run, self.engine, task, run.learned(), folder) as found:
            held = report_of(run, found.engine, found.task).metrics
            said = classify(found.engine, found.task, [row.values for row in self.unlabeled])
        scores = tuple(tuple(math.log(max(prob, 1e-12)) for prob in row.values()) for row in said)
        opinion = PatternPredictions(trust, headline_metric(held), scores)
        folder.write_state(opinion.to_json())
        folder.drop_checkpoints()
        self.say(f"pattern {number}: {format_metrics(held)}; accuracy {trust:.3f} on training rows before it learned")
        return opinion

    def _trust(self, task: Task) -> float:
        rows = self.run.material.train_rows
        count = min(TRUST_ROWS, len(rows))
        some = [rows[i * len(rows) // count] for i in range(count)]
        return headline_metric(evaluate(self.engine, task, some, label_field=self.run.material.label_field).metrics)


@dataclass(frozen=True)
class _Found:
    """What a run has found.

    Attributes:
        task: with what was learned.
        engine: serves it.
        parameters: how many numbers were learned.
        whole: the model's weights, where it is they that were learned.
    """

    task: Task
    engine: EngineProtocol
    parameters: int
    whole: FullFinetuning | None


@contextmanager
def _learned(
    run: PVPRun, engine: EngineProtocol, task: Task, start: TrainablePrompt, folder: RunDir
) -> Iterator[_Found]:
    """Learn; what was found may be used inside the block, behind which the model is as it was."""
    with ExitStack() as stack:
        whole = stack.enter_context(FullFinetuning(run.lm)) if run.recipe.weights == "all" else None
        own = stack.enter_context(Engine(run.lm, cache_bytes=CACHE_BYTES)) if whole is not None else engine
        fit(TaskEvaluator(run, own, task, start), folder)
        yield _Found(start.become(run.lm, task), own, start.parameter_count, whole)


def _unlabeled(run: Run) -> list[Row]:
    return read_rows(run.recipe.unlabeled) if run.recipe.unlabeled is not None else []
