"""`evaluate`: run a task over rows exactly as it is served, and compare with what the rows say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from itertools import accumulate
from typing import Any

import numpy as np

from foreword.core import OF_REQUESTS, KVPrefix, SamplingParams, Task
from foreword.engine.protocol import EngineProtocol, Request, Stream
from foreword.errors import DataError, EngineError, PromptTooLong, TemplateError, UsageError, VerbalizerError
from foreword.evaluation.likelihood import log_likelihoods, perplexity
from foreword.evaluation.metrics import label_metrics, tag_metrics, text_metrics
from foreword.evaluation.report import Prediction, Report
from foreword.evaluation.texts import unmeasured
from foreword.text import request, seam
from foreword.text.label_scorers import LabelScorer, head_scorer, word_scorer
from foreword.text.request import Prompt
from foreword.text.rows import Row
from foreword.text.template import Template
from foreword.text.verbalizer import Verbalizer

OnScored = Callable[[Sequence[Prompt]], object]


@dataclass(frozen=True)
class EvaluationJob:
    """A task and the rows that it is measured on.

    Attributes:
        task: made for the engine's model.
        rows: examples with the template's fields and the label, the tags or the target.
        label_field: the field that holds the label or the tags.
    """

    task: Task
    rows: Sequence[Row]
    label_field: str = "label"


def evaluate(engine: EngineProtocol, task: Task, rows: Sequence[Row], *, label_field: str = "label") -> Report:
    """Score the labels of a task with ``{mask}`` or a head, or generate for a task with ``{target:...}``.

    Args:
        engine: serves the model that the task was made for.
        rows: examples with the template's fields and the label, the tags or the target.
        label_field: the field that holds the label or the tags.

    Raises:
        DataError, TemplateError, VerbalizerError: naming the row that is wrong.
    """
    return evaluate_all(engine, [EvaluationJob(task, rows, label_field)])[0]


def evaluate_all(engine: EngineProtocol, trials: Sequence[EvaluationJob]) -> list[Report]:
    """`evaluate` for several tasks: those with the same words as labels are scored in the same batches."""
    sheets = [_sheet(engine, trial) for trial in trials]
    alike: dict[LabelScorer, list[_Sheet]] = {}
    for sheet in sheets:
        if sheet.choice is not None:
            alike.setdefault(sheet.choice, []).append(sheet)
    scores: dict[int, np.ndarray] = {}
    for choice, members in alike.items():
        found = np.asarray(engine.score([prompt for sheet in members for prompt in sheet.prompts], choice))
        counts = [sum(len(prompt.question.places) for prompt in sheet.prompts) for sheet in members]
        scores |= zip(map(id, members), _split(found, counts), strict=True)
    return [sheet.report(scores.get(id(sheet))) for sheet in sheets]


def classify(
    engine: EngineProtocol, task: Task, inputs: Sequence[Mapping[str, Any]], seen: OnScored | None = None
) -> list[dict[str, float]]:
    """Probability of every label for every input, in the order of the labels.

    Args:
        seen: is told the prompts before they are scored.

    Raises:
        UsageError: the task has no labels to choose from, or labels words.
    """
    template = _template(task)
    if task.head is not None and task.head.per_token:
        raise UsageError(f"task '{task.name}' labels every word; tag with it.")
    if task.head is None and (task.verbalizer is None or not template.has_mask):
        raise UsageError(f"task '{task.name}' has no verbalizer; ask it with generate, or train one with {{mask}}.")
    prompts = [_prompt(engine, task, values) for values in inputs]
    if seen is not None:
        seen(prompts)
    return [_by_label(task, row) for row in _probs(engine, task, prompts).tolist()]


def tag(
    engine: EngineProtocol, task: Task, inputs: Sequence[Mapping[str, Any]], seen: OnScored | None = None
) -> list[list[dict[str, float]]]:
    """Probability of every tag for every word of every input.

    Args:
        seen: is told the prompts before they are scored.

    Raises:
        UsageError: the task labels whole texts.
    """
    if task.head is None or not task.head.per_token:
        raise UsageError(f"task '{task.name}' labels whole texts, not their words; classify with it.")
    prompts = [_prompt(engine, task, values) for values in inputs]
    if seen is not None:
        seen(prompts)
    probs = _split(_probs(engine, task, prompts), [len(prompt.places) for prompt in prompts])
    return [[_by_label(task, word) for word in words.tolist()] for words in probs]


def generation_params(task: Task | None, **overrides: Any) -> SamplingParams:
    """The task's generation defaults, with what a request says in their place. Raises UsageError for a wrong value."""
    known = {field.name for field in fields(SamplingParams)} - OF_REQUESTS
    defaults = {} if task is None else {k: v for k, v in task.generation.items() if k in known}
    if task is not None and "logit_bias" in defaults:
        defaults["logit_bias"] = _biases(task.name, defaults["logit_bias"])
    for name in ("stop", "stop_token_ids"):
        if name in defaults:
            defaults[name] = tuple(defaults[name])
    return SamplingParams(**(defaults | {k: v for k, v in overrides.items() if v is not None}))


def _biases(name: str, found: Any) -> dict[int, float]:
    """A default ``logit_bias`` by token id: JSON has no numbers for keys."""
    try:
        return {int(token): float(bias) for token, bias in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise UsageError(
            f"the default logit_bias of task '{name}' must be an object of token ids to numbers, found "
            f"{str(found)[:60]}; publish the task again."
        ) from None


def _template(task: Task) -> Template:
    if task.template is None:
        raise TemplateError(f"task '{task.name}' has no template; evaluate a task that was trained with one.")
    return Template.parse(task.template)


def choice_of(engine: EngineProtocol, task: Task) -> LabelScorer:
    """How the labels of a task are scored on an engine's model."""
    if task.head is not None:
        return head_scorer(task.head)
    verbalizer = Verbalizer(task.verbalizer or {})
    before = _template(task).before_answer
    return word_scorer(engine.tokenizer, verbalizer, before, causal=engine.causal, decoder=engine.decoder)


def _probs(engine: EngineProtocol, task: Task, prompts: Sequence[Prompt]) -> np.ndarray:
    """``[answers, labels]`` for prompts of one task."""
    return _combined(task, np.asarray(engine.score(_of_members(task, prompts), choice_of(engine, task))))


def _of_members(task: Task, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts behind every member of an ensemble: all of them answer in one batch."""
    prefixes = (task.prefix, *task.members)
    return [_behind(prompt, prefix) if task.members else prompt for prefix in prefixes for prompt in prompts]


def _combined(task: Task, scores: np.ndarray) -> np.ndarray:
    """Probabilities ``[answers, labels]`` from what the members said, calibrated by what they say to nothing."""
    scores = scores.reshape(1 + len(task.members), -1, len(task.labels))
    if task.bias is not None:
        scores = scores - np.array([task.bias[label] for label in task.labels], dtype=scores.dtype)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    return _voted(probs) if task.combine == "vote" and task.members else probs.mean(0)


def _behind(prompt: Prompt, prefix: KVPrefix) -> Prompt:
    return replace(prompt, prefix=prefix if prefix.length else None, prefix_length=prefix.length)


def _voted(probs: np.ndarray) -> np.ndarray:
    """``[members, answers, labels]`` -> share of the members' votes; their mean probability breaks ties."""
    votes = np.eye(probs.shape[-1], dtype=probs.dtype)[probs.argmax(-1)]
    return (votes + 1e-6 * probs).mean(0) / (1 + 1e-6)


def _by_label(task: Task, probs: Sequence[float]) -> dict[str, float]:
    return dict(zip(task.labels, probs, strict=True))


@dataclass(frozen=True, eq=False)
class _Sheet:
    """A trial that the engine has yet to answer.

    Attributes:
        report: scores ``[answers, labels]`` of the prompts, or ``None`` without any -> what the trial found.
        prompts: to be scored, those of every member of an ensemble.
        choice: how; ``None`` where a text is being generated.
    """

    report: Callable[[Any], Report]
    prompts: Sequence[Prompt] = ()
    choice: LabelScorer | None = None


def _sheet(engine: EngineProtocol, trial: EvaluationJob) -> _Sheet:
    task = trial.task
    if not trial.rows:
        raise DataError("there are no rows to evaluate; give at least one.")
    template = _template(task)
    if task.head is not None and task.head.per_token:
        return _tagged(engine, trial)
    if template.has_mask or task.head is not None:
        return _classified(engine, trial)
    if template.target is not None:
        return _generated(engine, task, trial.rows)
    raise TemplateError(f"task '{task.name}' has a template without {{mask}} or {{target:...}}; it cannot be scored.")


def _classified(engine: EngineProtocol, trial: EvaluationJob) -> _Sheet:
    task, rows = trial.task, trial.rows
    expected = [label_of(row, trial.label_field) for row in rows]
    places = [label_index(task.labels, label, row) for label, row in zip(expected, rows, strict=True)]
    choice = choice_of(engine, task)
    prompts = _prompts(engine, task, rows, answer_tokens=choice.longest)

    def report(scores: np.ndarray) -> Report:
        probs = _combined(task, scores)
        surprises = _surprises(probs, places)
        predicted = [task.labels[place] for place in probs.argmax(-1).tolist()]
        metrics = label_metrics(predicted, expected, probs.max(-1).tolist())
        predictions = [
            Prediction(e, p, _by_label(task, row), surprise=s)
            for e, p, row, s in zip(expected, predicted, probs.tolist(), surprises.tolist(), strict=True)
        ]
        return Report(len(rows), metrics, predictions)

    return _Sheet(report, _of_members(task, prompts), choice)


def _tagged(engine: EngineProtocol, trial: EvaluationJob) -> _Sheet:
    task, rows = trial.task, trial.rows
    expected = [tags_of(row, trial.label_field) for row in rows]
    places = [[label_index(task.labels, tag, row) for tag in tags] for tags, row in zip(expected, rows, strict=True)]
    prompts = _prompts(engine, task, rows, answer_tokens=0)
    for tags, prompt, row in zip(expected, prompts, rows, strict=True):
        if len(tags) != len(prompt.places):
            raise DataError(f"{row.where}: there are {len(tags)} tags for {len(prompt.places)} words; give one a word.")

    def report(scores: np.ndarray) -> Report:
        probs = _combined(task, scores)
        counts = [len(tags) for tags in expected]
        surprises = _split(_surprises(probs, [place for row in places for place in row]), counts)
        found = [tuple(task.labels[place] for place in row.tolist()) for row in _split(probs.argmax(-1), counts)]
        predictions = [
            Prediction(e, p, surprise=float(s.mean())) for e, p, s in zip(expected, found, surprises, strict=True)
        ]
        return Report(len(rows), tag_metrics(found, expected), predictions)

    return _Sheet(report, _of_members(task, prompts), choice_of(engine, task))


def _surprises(probs: np.ndarray, expected: Sequence[int]) -> np.ndarray:
    """``[answers]``: minus the log-probability of the expected label; what is no number stays none."""
    chances = probs[np.arange(len(expected)), np.array(expected, dtype=np.int64)]
    return -np.log(np.where(chances < 1e-12, 1e-12, chances))


def _split(rows: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    return np.split(rows, list(accumulate(counts))[:-1])


def _generated(engine: EngineProtocol, task: Task, rows: Sequence[Row]) -> _Sheet:
    request.require_generation(task)
    template = _template(task)
    wanted = [template.references(row.values, row.where) for row in rows]
    prompts = _prompts(engine, task, rows, answer_tokens=1)
    params = generation_params(task)
    streams = [engine.submit(Request.from_prompt(prompt, _within(engine, prompt, params))) for prompt in prompts]

    def report(_: None) -> Report:
        predicted = [_answer(stream, row).strip() for stream, row in zip(streams, rows, strict=True)]
        references = [tuple(text.strip() for text in texts) for texts in wanted]
        # Of the first reference alone: all of them would take longer than the answers that are measured.
        first = [texts[0] for texts in wanted]
        metrics = {**text_metrics(predicted, references), **_perplexity(engine, prompts, rows, first)}
        predictions = [Prediction(r[0], p, references=r) for r, p in zip(references, predicted, strict=True)]
        return Report(len(rows), metrics, predictions, unmeasured())

    return _Sheet(report)


def _perplexity(
    engine: EngineProtocol, prompts: Sequence[Prompt], rows: Sequence[Row], wanted: Sequence[str]
) -> dict[str, float]:
    """Of texts as they stand, cut to the context; nothing if none has a token."""
    pairs: list[tuple[Prompt, list[int]]] = []
    for prompt, row, text in zip(prompts, rows, wanted, strict=True):
        room = engine.context and engine.context - prompt.prefix_length - len(prompt.token_ids)
        with row.named():
            target = seam.written(engine.tokenizer, text, None if engine.decoder else "")[:room]
        pairs += [(prompt, target)] if target else []
    if not pairs:
        return {}
    return {"perplexity": perplexity(log_likelihoods(engine, *zip(*pairs, strict=True)))}


def _prompt(engine: EngineProtocol, task: Task, values: Mapping[str, Any]) -> Prompt:
    return request.from_fields(engine.tokenizer, task, values, causal=engine.causal, decoder=engine.decoder)


def _prompts(engine: EngineProtocol, task: Task, rows: Sequence[Row], answer_tokens: int) -> list[Prompt]:
    """What the engine is given for every row, with room for an answer; errors name the row."""
    template, prompts = _template(task), []
    tags = task.head is not None and task.head.per_token
    for row in rows:
        if not tags:
            template.fill(row.values, row.where, answer=False)
        with row.named():
            prompt = _prompt(engine, task, row.values)
            used = prompt.prefix_length + len(prompt.token_ids)
            if engine.context is not None and used + answer_tokens > engine.context:
                raise PromptTooLong(
                    f"the example has {used} tokens with its prefix, the context of {engine.name} is {engine.context}; "
                    "shorten the row."
                )
        prompts.append(prompt)
    return prompts


def _within(engine: EngineProtocol, prompt: Prompt, params: SamplingParams) -> SamplingParams:
    """The task's defaults, cut to the room that a long prompt leaves."""
    return replace(params, max_tokens=prompt.fitting(params.max_tokens, engine.context))


def _answer(stream: Stream, row: Row) -> str:
    """The whole text of an answer. Raises EngineError rather than scoring half of one."""
    chunks = list(stream)
    if chunks[-1].finish_reason not in ("stop", "length"):
        raise EngineError(f"{row.where}: {chunks[-1].error or 'the answer was cancelled'}")
    return "".join(chunk.text for chunk in chunks)


def label_of(row: Row, label_field: str) -> str:
    """The label of a row as text, numbers and booleans as JSON spells them. Raises DataError that names the row."""
    if label_field not in row.values:
        has = ", ".join(map(str, row.values))
        raise DataError(f"{row.where}: the row has no field '{label_field}' (it has: {has}); pass --label-field.")
    value = row.values[label_field]
    if not isinstance(value, str | int | float | bool):
        raise DataError(f"{row.where}: label {value!r} is not text; write it as a string.")
    return value if isinstance(value, str) else json.dumps(value)


def tags_of(row: Row, label_field: str) -> tuple[str, ...]:
    """The tags of a row's words. Raises DataError that names the row."""
    value = row.values.get(label_field)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise DataError(f"{row.where}: field '{label_field}' must be a list of tags, found {str(value)[:40]!r}.")
    return tuple(value)


def label_index(labels: Sequence[str], label: str, row: Row) -> int:
    """Place of a label. Raises VerbalizerError that names the row if there is no such label."""
    if label in labels:
        return labels.index(label)
    near = get_close_matches(label, labels, n=1)
    mend = f"did you mean '{near[0]}'?" if near else "correct the row, or train with this label."
    shown = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
    raise VerbalizerError(f"{row.where}: label '{label}' is not one of the task's (labels: {shown}); {mend}")
