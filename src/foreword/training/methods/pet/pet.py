"""PET, pattern-exploiting training (Schick and Schütze 2021, arXiv:2001.07676).

Ordinary runs, one after another: a model is trained for every pattern, in a folder of its own; these models label the
unlabeled rows, and a last run is trained on the soft labels. With one pattern, or without unlabeled rows, there is only
the last run, through all patterns at once.
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
from foreword.progress import Say
from foreword.text.long_rows import LongRows
from foreword.text.rows import Row, read_rows
from foreword.text.template import Template
from foreword.training.data.training_data import evenly_spaced
from foreword.training.loop.distributed import require_single_process
from foreword.training.loop.evaluator import EVAL_CACHE_BYTES, TaskEvaluator
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.selection import best_task, evaluate_task, format_metrics, headline_metric
from foreword.training.loop.trainer import fit
from foreword.training.methods.base import MethodResult
from foreword.training.methods.full_finetuning import FullFinetuning
from foreword.training.methods.pet.pvp_run import PVPRun
from foreword.training.methods.pet.soft_labels import PatternPredictions, soft_labels
from foreword.training.modules.trainable_prompt import TrainablePrompt
from foreword.training.run import Run

# Training rows that the weight of a pattern is measured on, evenly over all of them.
WEIGHT_ROWS = 256


def check(run: Run) -> None:
    """Raise UsageError without a verbalizer, or for a flag that PET does not use; DataError or TemplateError that names
    an unlabeled row that cannot be used."""
    if run.lm.is_encoder_decoder:
        raise SettingError(
            "method",
            f"{run.lm.name} is an encoder-decoder, whose patterns --method pet does not combine; use --method lora.",
        )
    if run.data.verbalizer is None:
        raise SettingError(
            "method",
            "--method pet learns to fill {mask} with the words of labels; give such a --template, or use --method "
            "lora.",
        )
    run.recipe.reject_unused("members", "warm_start")
    if run.recipe.weights == "all":
        run.recipe.reject_unused("init", "calibrate", because="with --weights all")
        require_single_process("--weights all")
    run.example_builder.encode_unlabeled(_read_unlabeled(run))


def train(
    run: Run, engine: EngineProtocol, task: Task, prompt: TrainablePrompt, run_dir: RunDir, say: Say
) -> MethodResult:
    """Train the patterns, and a last run on their soft labels; the task has an adapter, or belongs to a changed
    model."""
    unlabeled = _read_unlabeled(run)
    if unlabeled and len(run.data.templates) > 1:
        last_run = PVPEnsemble(run, unlabeled, engine, task, run_dir, say).final_run()
    else:
        last_run = PVPRun.on_labels(run, run.data.templates, unlabeled)
    with _trained(last_run, engine, task, prompt, run_dir) as trained:
        made, model = trained.task, None
        if trained.full is not None:
            model = run_dir.path / "model"
            made = replace(made, prefix=replace(made.prefix, model=trained.full.save(model)))
        chosen, report = best_task(last_run, trained.engine, last_run.data.tasks(made))
    return MethodResult(chosen, report, trained.parameters, model)


@dataclass(frozen=True)
class PVPEnsemble:
    """Several pattern-verbalizer pairs, whose models label rows for a last run (knowledge distillation).

    Attributes:
        run: with all patterns.
        unlabeled: the rows to label.
        engine: serves the model as it is.
        task: without trained values.
        run_dir: has a folder for every pattern.
        say: gets a line for every pattern.
    """

    run: Run
    unlabeled: Sequence[Row]
    engine: EngineProtocol
    task: Task
    run_dir: RunDir
    say: Say

    def final_run(self) -> PVPRun:
        """The run on the soft labels, through the pattern whose model is best on the evaluation rows."""
        templates = self.run.data.templates
        predictions = [self.predictions(number, template) for number, template in enumerate(templates, 1)]
        chosen = max(range(len(templates)), key=lambda index: predictions[index].metric)
        self.say(f"{len(templates)} patterns teach pattern {chosen + 1} with {len(self.unlabeled)} rows")
        return PVPRun.on_soft_labels(self.run, templates[chosen], self.unlabeled, soft_labels(predictions))

    def predictions(self, number: int, template: Template) -> PatternPredictions:
        """Train a pattern's model and predict with it, or read what it predicted before the run was interrupted."""
        run_dir = self.run_dir.subdir(f"pattern-{number}")
        saved = run_dir.read_state()
        if saved is not None:
            with run_dir.restoring():
                return PatternPredictions.from_json(saved)
        task = replace(self.task, template=template.source)
        weight = self._untrained_accuracy(task)
        run = PVPRun.on_labels(self.run, [template], self.unlabeled)
        with _trained(run, self.engine, task, run.initial_prompt(), run_dir) as trained:
            metrics = evaluate_task(run, trained.engine, trained.task).metrics
            rows = classify(trained.engine, trained.task, [row.values for row in self.unlabeled])
        scores = tuple(tuple(math.log(max(prob, 1e-12)) for prob in row.values()) for row in rows)
        predictions = PatternPredictions(weight, headline_metric(metrics), scores)
        run_dir.write_state(predictions.to_json())
        run_dir.delete_checkpoints()
        self.say(
            f"pattern {number}: {format_metrics(metrics)}; accuracy {weight:.3f} on training rows before it learned"
        )
        return predictions

    def _untrained_accuracy(self, task: Task) -> float:
        """Accuracy of the model as it is on some of the training rows."""
        rows = evenly_spaced(self.run.data.train_rows, WEIGHT_ROWS)
        return headline_metric(evaluate(self.engine, task, rows, label_field=self.run.data.label_field).metrics)


@dataclass(frozen=True)
class _TrainedPattern:
    """The result of one of PET's runs.

    Attributes:
        task: with the trained values.
        engine: serves it.
        parameters: count of trained numbers.
        full: the model's own weights, if they were trained.
    """

    task: Task
    engine: EngineProtocol
    parameters: int
    full: FullFinetuning | None


@contextmanager
def _trained(
    run: PVPRun, engine: EngineProtocol, task: Task, prompt: TrainablePrompt, run_dir: RunDir
) -> Iterator[_TrainedPattern]:
    """Train; the result may be used inside the block, after which the model is as it was."""
    with ExitStack() as stack:
        full = stack.enter_context(FullFinetuning(run.lm)) if run.recipe.weights == "all" else None
        if full is not None:
            engine = stack.enter_context(Engine(run.lm, cache_bytes=EVAL_CACHE_BYTES))
        fit(run, prompt, TaskEvaluator(run, engine, task, prompt), run_dir)
        yield _TrainedPattern(prompt.to_task(run.lm, task), engine, prompt.num_trainable_parameters, full)


def _read_unlabeled(run: Run) -> list[Row]:
    if run.recipe.unlabeled is None:
        return []
    long_rows = run.data.checked(LongRows.parse(run.recipe.long_rows))
    rows = read_rows(run.recipe.unlabeled)
    return long_rows.fit(rows, lambda row: run.example_builder.row_fits(row, answer=False)).rows
