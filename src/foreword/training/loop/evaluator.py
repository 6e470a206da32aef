"""`TaskEvaluator`: metrics of a run on its validation rows, through the engine that will serve it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from foreword.core import Front, Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import TrainingError
from foreword.evaluation.evaluate import EvaluationJob, evaluate_all
from foreword.evaluation.report import Report
from foreword.models.packed_linear import release_packed_weights
from foreword.text.ragged import batch_by_tokens
from foreword.training.data.examples import Example
from foreword.training.modules.losses import shared_forward_totals
from foreword.training.modules.trainable_prompt import TrainablePrompt
from foreword.training.run import Run

# Tokens of a forward that several runs share, unless a single one has more. More are no faster and take more memory.
MAX_FORWARD_TOKENS = 1024
# Bytes of an evaluating engine's cache: answers and labels are short, a large cache pays in serving.
EVAL_CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class TaskEvaluator:
    """An `Evaluator` of a run on rows.

    Attributes:
        run: data and loss.
        engine: serves the run's model.
        task: the run's task, without the prompt's values.
        prompt: is being trained.
    """

    run: Run
    engine: EngineProtocol
    task: Task
    prompt: TrainablePrompt

    def __call__(self) -> dict[str, float]:
        """Metrics of the prompt's present values. Raises TrainingError if the loss is not finite."""
        (metrics,) = evaluate_together([self])
        if not math.isfinite(metrics["loss"]):
            raise TrainingError("the loss is no longer a number; start again with a smaller --lr and another --out.")
        return metrics

    def jobs(self) -> list[EvaluationJob]:
        """An evaluation by the engine for every template, of a run that chooses labels."""
        data, rows = self.run.data, self.run.validation_set
        tasks = [self.prompt.to_task(self.run.lm, task) for task in data.tasks(self.task)]
        return [EvaluationJob(task, rows, data.label_field) for task in tasks]

    def batches(self) -> Iterator[tuple[Front, Sequence[Example]]]:
        """Batches of the validation rows, each with the front it is run behind, of a run that writes answers."""
        front = self._front(self.prompt.to_task(self.run.lm, self.task))
        for start in range(0, len(self._examples), self.run.batch_size):
            yield front, self._examples[start : start + self.run.batch_size]

    def _front(self, task: Task) -> Front:
        inner = self.run.data.num_inner_soft_tokens(self.run.lm.causal)
        soft = task.soft[len(task.soft) - inner :] if inner and task.soft is not None else None
        return Front(task.prefix, inner_soft=soft, adapter=task.adapter)

    @cached_property
    def _examples(self) -> Sequence[Example]:
        """The validation rows in tokens, in order of length."""
        return sorted(self.run.example_builder.build(self.run.validation_set), key=lambda example: example.num_tokens)


def evaluate_together(evaluators: Sequence[TaskEvaluator]) -> list[dict[str, float]]:
    """Metrics of several runs of one model, in as few forwards as there can be.

    ``score`` selects the best values; ``loss`` is not finite where the values are not.
    """
    labels = [evaluator for evaluator in evaluators if evaluator.run.data.labels]
    answers = [evaluator for evaluator in evaluators if not evaluator.run.data.labels]
    metrics = dict(zip(map(id, labels), _label_metrics(labels), strict=True))
    metrics |= zip(map(id, answers), _answer_metrics(answers), strict=True)
    if evaluators:
        release_packed_weights(evaluators[0].run.lm.model)  # training goes on
    return [metrics[id(evaluator)] for evaluator in evaluators]


def _label_metrics(evaluators: Sequence[TaskEvaluator]) -> list[dict[str, float]]:
    """Those of the template with the best first metric (accuracy, span F1) of each; the loss breaks ties."""
    if not evaluators:
        return []
    jobs = [evaluator.jobs() for evaluator in evaluators]
    reports = iter(evaluate_all(evaluators[0].engine, [job for own in jobs for job in own]))
    return [max((_with_score(next(reports)) for _ in own), key=lambda metrics: metrics["score"]) for own in jobs]


def _with_score(report: Report) -> dict[str, float]:
    loss, first = report.loss, next(iter(report.metrics.values()))
    assert loss is not None  # only generated texts may have none
    return {**report.metrics, "loss": loss, "score": first + 1e-4 / (1 + loss)}


@torch.inference_mode()
def _answer_metrics(evaluators: Sequence[TaskEvaluator]) -> list[dict[str, float]]:
    """Mean loss of the answers' tokens: as good a guide as generating them all, and much quicker."""
    losses = [evaluator.run.shared_loss(evaluator.prompt) for evaluator in evaluators]
    batches = [(index, *batch) for index, evaluator in enumerate(evaluators) for batch in evaluator.batches()]
    sums, normalizers = [0.0] * len(evaluators), [0.0] * len(evaluators)
    for shared in batch_by_tokens(
        [(batch, sum(example.num_tokens for example in batch[2])) for batch in batches], MAX_FORWARD_TOKENS
    ):
        lm = evaluators[0].run.lm
        inputs = [losses[index].forward_inputs(lm, front, examples) for index, front, examples in shared]
        for (index, _, examples), total in zip(shared, shared_forward_totals(lm, inputs), strict=True):
            sums[index] += float(total)
            normalizers[index] += losses[index].normalizer(examples)
    means = [total / normalizer for total, normalizer in zip(sums, normalizers, strict=True)]
    return [{"loss": mean, "score": -mean} for mean in means]
