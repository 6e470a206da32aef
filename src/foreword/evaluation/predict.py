"""`classify` and `tag`: label probabilities of a task, through an engine; evaluation and server use the same path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from foreword.core import KVPrefix, Task
from foreword.engine.protocol import ANONYMOUS, EngineProtocol, Sender
from foreword.errors import TemplateError, UsageError
from foreword.text import task_prompts
from foreword.text.label_scorers import LabelScorer, head_scorer, word_scorer
from foreword.text.prompt import Prompt
from foreword.text.template import Template
from foreword.text.verbalizer import Verbalizer

THRESHOLD = 0.5
"""Probability from which a label of several counts as chosen."""

OnPrompts = Callable[[Sequence[Prompt]], object]
"""Called with the prompts before they are scored."""


def classify(
    engine: EngineProtocol,
    task: Task,
    inputs: Sequence[Mapping[str, Any]],
    on_prompts: OnPrompts | None = None,
    sender: Sender = ANONYMOUS,
) -> list[dict[str, float]]:
    """Probability of every label, or the number of a regression, for every input; labels are in their order.

    Raises:
        UsageError: the task has no labels, or labels words.
    """
    template = parse_template(task)
    if task.head is not None and task.head.per_token:
        raise UsageError(f"task '{task.name}' labels every word; tag with it.")
    if task.head is None and (task.verbalizer is None or not template.has_mask):
        raise UsageError(f"task '{task.name}' has no verbalizer; ask it with generate, or train one with {{mask}}.")
    prompts = [make_prompt(engine, task, values) for values in inputs]
    if on_prompts is not None:
        on_prompts(prompts)
    return [by_label(task, row) for row in _probs(engine, task, prompts, sender).tolist()]


def label_answer(task: Task, probs: Mapping[str, float]) -> dict[str, Any]:
    """The answer to one input, from an entry of `classify`, as the server and the command line give it.

    ``label`` is the most probable label and ``probs`` has the probability of each. Where a text may have several
    labels, ``labels`` are those of probability `THRESHOLD` or more, maybe none. A regression has ``value`` alone.
    """
    problem_type = task.head.problem_type if task.head is not None else "single_label_classification"
    if problem_type == "regression":
        return {"value": probs[task.labels[0]]}
    best = {"label": max(probs, key=probs.__getitem__), "probs": dict(probs)}
    if problem_type == "multi_label_classification":
        return {"labels": list(chosen_labels(probs)), **best}
    return best


def chosen_labels(probs: Mapping[str, float]) -> tuple[str, ...]:
    """The labels that are chosen where a text may have several, in their order."""
    return tuple(label for label, value in probs.items() if value >= THRESHOLD)


def tag(
    engine: EngineProtocol,
    task: Task,
    inputs: Sequence[Mapping[str, Any]],
    on_prompts: OnPrompts | None = None,
    sender: Sender = ANONYMOUS,
) -> list[list[dict[str, float]]]:
    """Probability of every tag for every word of every input.

    Raises:
        UsageError: the task labels whole texts.
    """
    if task.head is None or not task.head.per_token:
        raise UsageError(f"task '{task.name}' labels whole texts, not their words; classify with it.")
    prompts = [make_prompt(engine, task, values) for values in inputs]
    if on_prompts is not None:
        on_prompts(prompts)
    probs = split_rows(_probs(engine, task, prompts, sender), [len(prompt.output_indices) for prompt in prompts])
    return [[by_label(task, word) for word in words.tolist()] for words in probs]


def parse_template(task: Task) -> Template:
    """The task's template. Raises TemplateError if it has none."""
    if task.template is None:
        raise TemplateError(
            f"task '{task.name}' has no template, and no labels; ask it in a chat, and evaluate it on conversations."
        )
    return Template.parse(task.template)


def make_prompt(engine: EngineProtocol, task: Task, values: Mapping[str, Any]) -> Prompt:
    """The prompt of one input for an engine's model."""
    return task_prompts.from_fields(
        engine.tokenizer, task, values, causal=engine.causal, is_encoder_decoder=engine.is_encoder_decoder
    )


def label_scorer(engine: EngineProtocol, task: Task) -> LabelScorer:
    """The scorer of a task's labels on an engine's model: its head, or the words of its verbalizer."""
    if task.head is not None:
        return head_scorer(task.head)
    verbalizer = Verbalizer(task.verbalizer or {})
    verbalizer.check_token_rows(engine.tokenizer, engine.identity.vocab_size)
    before = parse_template(task).before_answer
    return word_scorer(
        engine.tokenizer, verbalizer, before, causal=engine.causal, is_encoder_decoder=engine.is_encoder_decoder
    )


def ensemble_prompts(task: Task, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts behind the prefix of every member, member after member; just the prompts without an ensemble."""
    if not task.members:
        return list(prompts)
    return [_with_prefix(prompt, prefix) for prefix in (task.prefix, *task.members) for prompt in prompts]


def label_probs(task: Task, scores: np.ndarray) -> np.ndarray:
    """Probabilities ``[places, labels]`` from the scores of `ensemble_prompts`: calibrated by the task's bias
    (contextual calibration, Zhao et al. 2021), softmaxed, and combined over the members.

    Where a text may have several labels each is a probability of its own (sigmoid). The score of a regression is its
    number."""
    scores = scores.reshape(1 + len(task.members), -1, len(task.labels))
    if task.head is not None and task.head.problem_type == "regression":
        return scores.mean(0)
    if task.head is not None and task.head.problem_type == "multi_label_classification":
        return (0.5 * (1 + np.tanh(0.5 * scores))).mean(0)  # the sigmoid, which overflows for no score
    if task.bias is not None:
        scores = scores - np.array([task.bias[label] for label in task.labels], dtype=scores.dtype)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    return _majority_vote(probs) if task.combine == "vote" and task.members else probs.mean(0)


def by_label(task: Task, probs: Sequence[float]) -> dict[str, float]:
    return dict(zip(task.labels, probs, strict=True))


def split_rows(rows: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """Consecutive parts of ``counts`` rows."""
    return np.split(rows, list(accumulate(counts))[:-1])


def _probs(engine: EngineProtocol, task: Task, prompts: Sequence[Prompt], sender: Sender) -> np.ndarray:
    """``[places, labels]`` for prompts of one task."""
    scores = engine.score(ensemble_prompts(task, prompts), label_scorer(engine, task), sender=sender)
    return label_probs(task, np.asarray(scores))


def _with_prefix(prompt: Prompt, prefix: KVPrefix) -> Prompt:
    return replace(prompt, prefix=prefix if prefix.length else None, prefix_length=prefix.length)


def _majority_vote(probs: np.ndarray) -> np.ndarray:
    """``[members, places, labels]`` -> share of the members' votes; their mean probability breaks ties."""
    votes = np.eye(probs.shape[-1], dtype=probs.dtype)[probs.argmax(-1)]
    return (votes + 1e-6 * probs).mean(0) / (1 + 1e-6)
