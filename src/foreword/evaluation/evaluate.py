"""`evaluate`: run a task over rows exactly as it is served, and compare with the rows' references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from foreword.core import SamplingParams, Task
from foreword.engine.protocol import EngineProtocol, Request, Stream
from foreword.errors import DataError, EngineError, PromptTooLong, SettingError, TemplateError
from foreword.evaluation.label_references import negative_log_likelihood, references
from foreword.evaluation.metrics import tag_metrics, text_metrics
from foreword.evaluation.perplexity import perplexity, target_logprobs
from foreword.evaluation.predict import (
    ensemble_prompts,
    label_probs,
    label_scorer,
    make_prompt,
    parse_template,
    split_rows,
)
from foreword.evaluation.report import Prediction, Report
from foreword.evaluation.row_labels import label_index, row_tags
from foreword.evaluation.sampling_params import task_sampling_params
from foreword.evaluation.text_metrics import unavailable_metrics
from foreword.text import seam, task_prompts
from foreword.text.assistant_turns import AssistantTurn, assistant_turns, join_turns
from foreword.text.conversation import Conversation, LearnTurns, Message, is_conversation
from foreword.text.label_scorers import LabelScorer
from foreword.text.long_rows import MEND, FittedRows, LongRows
from foreword.text.prompt import Prompt
from foreword.text.rows import Row, Source, read_rows


@dataclass(frozen=True)
class EvaluationJob:
    """A task and the rows that it is evaluated on.

    Attributes:
        task: made for the engine's model.
        rows: examples with the template's fields and the label, the tags or the target.
        label_field: the field that holds the label or the tags; ``None`` for the one that the task was learned from.
        learn_turns: of conversations, which turns of the assistant are measured.
    """

    task: Task
    rows: Sequence[Row]
    label_field: str | None = None
    learn_turns: LearnTurns = "all"

    @property
    def answer_field(self) -> str:
        """The field that holds the label or the tags."""
        return self.label_field or self.task.label_field


def evaluate(
    engine: EngineProtocol,
    task: Task,
    rows: Source,
    *,
    label_field: str | None = None,
    learn_turns: LearnTurns = "all",
) -> Report:
    """Score the labels of a task with ``{mask}`` or a head, or generate for a task with ``{target:...}``; of a task
    without a template, measure the assistant's turns of conversations.

    Args:
        engine: serves the model that the task was made for.
        rows: examples with the template's fields and the label, the tags or the target; or conversations: `Row`
            objects, dicts, a `datasets.Dataset`, a DataFrame, or the name of a file or data set.
        label_field: the field that holds the label or the tags; ``None`` for the one that the task was learned from.
        learn_turns: of conversations, which turns of the assistant are measured.

    Raises:
        DataError, TemplateError, VerbalizerError: naming the row that is wrong.
    """
    return evaluate_all(engine, [EvaluationJob(task, read_rows(rows), label_field, learn_turns)])[0]


def evaluate_all(engine: EngineProtocol, jobs: Sequence[EvaluationJob]) -> list[Report]:
    """`evaluate` for several tasks: those with the same words as labels are scored in the same batches."""
    started = [_start(engine, job) for job in jobs]
    by_scorer: dict[LabelScorer, list[_Started]] = {}
    for each in started:
        if each.scorer is not None:
            by_scorer.setdefault(each.scorer, []).append(each)
    scores: dict[int, np.ndarray] = {}
    for scorer, members in by_scorer.items():
        together = np.asarray(engine.score([prompt for each in members for prompt in each.prompts], scorer))
        counts = [sum(len(prompt.encoded_example.output_indices) for prompt in each.prompts) for each in members]
        scores |= zip(map(id, members), split_rows(together, counts), strict=True)
    return [each.make_report(scores.get(id(each))) for each in started]


def fit_rows(
    engine: EngineProtocol, tasks: Sequence[Task], rows: Sequence[Row], long_rows: LongRows, max_length: int | None
) -> FittedRows:
    """The rows that fit into the context with every task, the others refused, left out or cut.

    Args:
        max_length: tokens of a row behind its prefix, at most; ``None`` for what fits into the context.

    Raises PromptTooLong for a row that is longer than ``max_length`` where long rows are refused, and as
    `LongRows.fit` does.
    """
    if long_rows.action == "refuse" and max_length is None:
        return FittedRows(list(rows))
    if any(task.template is None for task in tasks):
        raise SettingError("long_rows", "conversations are measured whole; leave out --long-rows and --max-length.")
    limits = [(task, _answer_tokens(engine, task)) for task in tasks]

    def fits(row: Row) -> bool:
        with row.error_context():
            for task, answer in limits:
                prompt = make_prompt(engine, task, row.values)
                tokens = len(prompt.token_ids)
                room = prompt.room(engine.context, is_encoder_decoder=engine.is_encoder_decoder)
                if room is not None and answer > room:
                    return False
                if max_length is not None and tokens > max_length:
                    return False
        return True

    if long_rows.action == "refuse":
        if (long := next((row for row in rows if not fits(row)), None)) is not None:
            raise PromptTooLong(f"{long.where}: the row has more than {max_length} tokens (--max-length); {MEND}.")
        return FittedRows(list(rows))
    fields = dict.fromkeys(name for task in tasks for name in parse_template(task).fields)
    return long_rows.of_fields(list(fields)).fit(rows, fits)


def _answer_tokens(engine: EngineProtocol, task: Task) -> int:
    """Room that a row of a task needs behind its prompt."""
    return label_scorer(engine, task).max_extra_tokens if task.labels else 1


@dataclass(frozen=True, eq=False)
class _Started:
    """A job that was checked and is ready to be scored, or whose answers are being generated.

    Attributes:
        make_report: from the scores ``[places, labels]`` of the prompts, or ``None`` where texts are generated.
        prompts: to be scored, those of every member of an ensemble.
        scorer: of their labels; ``None`` where texts are generated.
    """

    make_report: Callable[[Any], Report]
    prompts: Sequence[Prompt] = ()
    scorer: LabelScorer | None = None


def _start(engine: EngineProtocol, job: EvaluationJob) -> _Started:
    task = job.task
    if not job.rows:
        raise DataError("there are no rows to evaluate; give at least one.")
    if task.template is None and is_conversation(job.rows[0].values):
        return _start_conversations(engine, job)
    template = parse_template(task)
    if task.head is not None and task.head.per_token:
        return _start_tagging(engine, job)
    if template.has_mask or task.head is not None:
        return _start_classification(engine, job)
    if template.target is not None:
        return _start_generation(engine, task, job.rows)
    raise TemplateError(f"task '{task.name}' has a template without {{mask}} or {{target:...}}; it cannot be scored.")


def _start_classification(engine: EngineProtocol, job: EvaluationJob) -> _Started:
    task, rows = job.task, job.rows
    wanted = references(task, rows, job.answer_field)
    scorer = label_scorer(engine, task)
    prompts = _make_prompts(engine, task, rows, answer_tokens=scorer.max_extra_tokens)
    return _Started(partial(wanted.report, task), ensemble_prompts(task, prompts), scorer)


def _start_tagging(engine: EngineProtocol, job: EvaluationJob) -> _Started:
    task, rows = job.task, job.rows
    expected = [row_tags(row, job.answer_field) for row in rows]
    indices = [label_index(task.labels, tag, row) for tags, row in zip(expected, rows, strict=True) for tag in tags]
    prompts = _make_prompts(engine, task, rows, answer_tokens=0)
    for tags, prompt, row in zip(expected, prompts, rows, strict=True):
        if len(tags) != len(prompt.output_indices):
            raise DataError(
                f"{row.where}: there are {len(tags)} tags for {len(prompt.output_indices)} words; give one a word."
            )

    def make_report(scores: np.ndarray) -> Report:
        probs = label_probs(task, scores)
        counts = [len(tags) for tags in expected]
        nll = split_rows(negative_log_likelihood(probs, indices), counts)
        predicted = [tuple(task.labels[i] for i in row.tolist()) for row in split_rows(probs.argmax(-1), counts)]
        predictions = [
            Prediction(tags, guess, nll=float(loss.mean()))
            for tags, guess, loss in zip(expected, predicted, nll, strict=True)
        ]
        return Report(len(rows), tag_metrics(predicted, expected), predictions)

    return _Started(make_report, ensemble_prompts(task, prompts), label_scorer(engine, task))


def _start_generation(engine: EngineProtocol, task: Task, rows: Sequence[Row]) -> _Started:
    task_prompts.require_generation(task)
    template = parse_template(task)
    targets = [template.references(row.values, row.where) for row in rows]
    prompts = _make_prompts(engine, task, rows, answer_tokens=1)
    params = task_sampling_params(task)
    streams = [engine.submit(Request.from_prompt(prompt, _cut_to_room(engine, prompt, params))) for prompt in prompts]

    def make_report(_: None) -> Report:
        predicted = [_read_answer(stream, row).strip() for stream, row in zip(streams, rows, strict=True)]
        references = [tuple(text.strip() for text in texts) for texts in targets]
        # Of the first reference alone: all of them would take longer than the answers that are measured.
        first = [texts[0] for texts in targets]
        metrics = {**text_metrics(predicted, references), **_perplexity(engine, prompts, rows, first)}
        predictions = [Prediction(r[0], p, references=r) for r, p in zip(references, predicted, strict=True)]
        return Report(len(rows), metrics, predictions, unavailable_metrics())

    return _Started(make_report)


def _start_conversations(engine: EngineProtocol, job: EvaluationJob) -> _Started:
    """Perplexity of all answers, each behind its own history; of every row the last one is generated, too."""
    task, rows = job.task, job.rows
    task_prompts.require_generation(task)
    turns = [_assistant_turns(engine, job, row) for row in rows]
    references = [engine.tokenizer.decode(each[-1].token_ids, skip_special_tokens=True).strip() for each in turns]
    params = task_sampling_params(task)
    prompts = [each[-1].prompt for each in turns]
    streams = [engine.submit(Request.from_prompt(prompt, _cut_to_room(engine, prompt, params))) for prompt in prompts]

    def make_report(_: None) -> Report:
        predicted = [_read_answer(stream, row).strip() for stream, row in zip(streams, rows, strict=True)]
        logprobs = engine.token_logprobs([prompt for each in turns for prompt in join_turns(each)])
        metrics = {**text_metrics(predicted, [(text,) for text in references]), "perplexity": perplexity(logprobs)}
        pairs = zip(references, predicted, strict=True)
        predictions = [Prediction(text, guess, references=(text,)) for text, guess in pairs]
        return Report(len(rows), metrics, predictions, unavailable_metrics())

    return _Started(make_report)


def _assistant_turns(engine: EngineProtocol, job: EvaluationJob, row: Row) -> list[AssistantTurn]:
    """The measured turns of a row. Raises DataError for one that is no conversation, PromptTooLong for a long one."""

    def request(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Prompt:
        return task_prompts.from_messages(engine.tokenizer, job.task, messages, tools=tools or None)

    with row.error_context():
        turns = assistant_turns(engine.tokenizer, Conversation.read(row.values, job.learn_turns), request)
        used = max(turn.prompt.prefix_length + len(turn.prompt.token_ids) + len(turn.token_ids) for turn in turns)
        if engine.context is not None and used > engine.context:
            raise PromptTooLong(
                f"the conversation has {used} tokens with its prefix, the context of {engine.name} is "
                f"{engine.context}; shorten the row."
            )
    return turns


def _perplexity(
    engine: EngineProtocol, prompts: Sequence[Prompt], rows: Sequence[Row], references: Sequence[str]
) -> dict[str, float]:
    """Perplexity of the references, cut to the context; empty if none has a token."""
    pairs: list[tuple[Prompt, list[int]]] = []
    for prompt, row, text in zip(prompts, rows, references, strict=True):
        room = prompt.room(engine.context, is_encoder_decoder=engine.is_encoder_decoder)
        with row.error_context():
            target = seam.answer_ids(engine.tokenizer, text, None if engine.is_encoder_decoder else "")[:room]
        pairs += [(prompt, target)] if target else []
    if not pairs:
        return {}
    return {"perplexity": perplexity(target_logprobs(engine, *zip(*pairs, strict=True)))}


def _make_prompts(engine: EngineProtocol, task: Task, rows: Sequence[Row], answer_tokens: int) -> list[Prompt]:
    """The prompt of every row, with room for an answer; errors name the row."""
    template, prompts = parse_template(task), []
    tags = task.head is not None and task.head.per_token
    for row in rows:
        if not tags:
            template.fill(row.values, row.where, answer=False)
        with row.error_context():
            prompt = make_prompt(engine, task, row.values)
            used = prompt.prefix_length + len(prompt.token_ids)
            room = prompt.room(engine.context, is_encoder_decoder=engine.is_encoder_decoder)
            if room is not None and answer_tokens > room:
                raise PromptTooLong(
                    f"the example has {used} tokens with its prefix, the context of {engine.name} is {engine.context}; "
                    "shorten the row."
                )
        prompts.append(prompt)
    return prompts


def _cut_to_room(engine: EngineProtocol, prompt: Prompt, params: SamplingParams) -> SamplingParams:
    """The parameters with ``max_tokens`` cut to the room that a long prompt leaves."""
    cut = prompt.cap_max_tokens(params.max_tokens, engine.context, is_encoder_decoder=engine.is_encoder_decoder)
    return replace(params, max_tokens=cut)


def _read_answer(stream: Stream, row: Row) -> str:
    """The whole text of an answer. Raises EngineError rather than scoring half of one."""
    chunks = list(stream)
    if chunks[-1].finish_reason not in ("stop", "length"):
        raise EngineError(f"{row.where}: {chunks[-1].error or 'the answer was cancelled'}")
    return "".join(chunk.text for chunk in chunks)
