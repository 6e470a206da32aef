"""`evaluate`: run a task over rows exactly as it is served, and compare with what the rows say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from foreword.core import SamplingParams, Task
from foreword.engine.protocol import EngineProtocol, Request, Stream
from foreword.errors import DataError, EngineError, PromptTooLong, TemplateError, UsageError
from foreword.evaluation.metrics import accuracy, macro_f1
from foreword.text import request
from foreword.text.request import Prompt
from foreword.text.rows import Row
from foreword.text.template import Template
from foreword.text.verbalizer import Verbalizer


@dataclass(frozen=True)
class Prediction:
    """One row's answer.

    Attributes:
        expected, predicted: labels, or texts without surrounding white space.
        probs: probability of every label; None for generated text.
    """

    expected: str
    predicted: str
    probs: dict[str, float] | None = None


@dataclass(frozen=True)
class Report:
    """Metrics over ``n`` rows, and every prediction in the order of the rows."""

    n: int
    metrics: dict[str, float]
    predictions: list[Prediction]


def evaluate(engine: EngineProtocol, task: Task, rows: Sequence[Row], *, label_field: str = "label") -> Report:
    """Score the verbalizer of a task with ``{mask}``, or generate for a task with ``{target:...}``.

    Args:
        engine: serves the model that the task was made for.
        rows: examples with the template's fields and the label or target.
        label_field: the field that holds the label.

    Raises:
        DataError, TemplateError, VerbalizerError: naming the row that is wrong.
    """
    if not rows:
        raise DataError("there are no rows to evaluate; give at least one.")
    template = _template(task)
    if template.has_mask:
        return _classified(engine, task, rows, label_field)
    if template.target is not None:
        return _generated(engine, task, rows)
    raise TemplateError(f"task '{task.name}' has a template without {{mask}} or {{target:...}}; it cannot be scored.")


def classify(engine: EngineProtocol, task: Task, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Probability of every label for every input, in the order of the verbalizer.

    Raises:
        UsageError: the task has no template with ``{mask}`` or no verbalizer.
    """
    template = _template(task)
    if task.verbalizer is None or not template.has_mask:
        raise UsageError(f"task '{task.name}' has no verbalizer; ask it with generate, or train one with {{mask}}.")
    return _probs(engine, task, [request.from_fields(engine.tokenizer, task, values) for values in inputs])


def generation_params(task: Task | None, **overrides: Any) -> SamplingParams:
    """The task's generation defaults, with what a request says in their place."""
    known = {field.name for field in fields(SamplingParams)}
    defaults = {} if task is None else {k: v for k, v in task.generation.items() if k in known}
    for name in ("stop", "stop_token_ids"):
        if name in defaults:
            defaults[name] = tuple(defaults[name])
    return SamplingParams(**(defaults | {k: v for k, v in overrides.items() if v is not None}))


def _template(task: Task) -> Template:
    if task.template is None:
        raise TemplateError(f"task '{task.name}' has no template; evaluate a task that was trained with one.")
    return Template.parse(task.template)


def _probs(engine: EngineProtocol, task: Task, prompts: Sequence[Prompt]) -> list[dict[str, float]]:
    verbalizer = Verbalizer(task.verbalizer or {})
    trie = verbalizer.encode(engine.tokenizer, _template(task).before_answer)
    probs = engine.score(prompts, trie).softmax(-1).tolist()
    return [dict(zip(verbalizer.labels, row, strict=True)) for row in probs]


def _classified(engine: EngineProtocol, task: Task, rows: Sequence[Row], label_field: str) -> Report:
    verbalizer = Verbalizer(task.verbalizer or {})
    expected = [label_of(row, label_field) for row in rows]
    for label, row in zip(expected, rows, strict=True):
        verbalizer.index(label, row.where)
    trie = verbalizer.encode(engine.tokenizer, _template(task).before_answer)
    prompts = _prompts(engine, task, rows, answer_tokens=max(len(path) for _, path in trie.words))
    probs = _probs(engine, task, prompts)
    predicted = [max(row, key=row.__getitem__) for row in probs]
    metrics = {"accuracy": accuracy(predicted, expected), "macro_f1": macro_f1(predicted, expected)}
    predictions = [Prediction(*found) for found in zip(expected, predicted, probs, strict=True)]
    return Report(len(rows), metrics, predictions)


def _generated(engine: EngineProtocol, task: Task, rows: Sequence[Row]) -> Report:
    template = _template(task)
    expected = [(template.fill(row.values, row.where).target or "").strip() for row in rows]
    prompts = _prompts(engine, task, rows, answer_tokens=1)
    params = generation_params(task)
    streams = [engine.submit(Request.of(prompt, _within(engine, prompt, params))) for prompt in prompts]
    predicted = [_answer(stream, row).strip() for stream, row in zip(streams, rows, strict=True)]
    metrics = {"exact_match": accuracy(predicted, expected)}
    return Report(len(rows), metrics, [Prediction(*pair) for pair in zip(expected, predicted, strict=True)])


def _prompts(engine: EngineProtocol, task: Task, rows: Sequence[Row], answer_tokens: int) -> list[Prompt]:
    """What the engine is given for every row, with room for an answer; errors name the row."""
    template, prompts = _template(task), []
    for row in rows:
        template.fill(row.values, row.where, answer=False)
        with row.named():
            prompt = request.from_fields(engine.tokenizer, task, row.values)
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
