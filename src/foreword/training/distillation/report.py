"""`DistillationReport`: quality of a distilled prefix relative to its text, and the memory and time it saves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foreword.core import Front, SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.evaluation.text_metrics import token_f1
from foreword.text.prompt import Prompt
from foreword.training.distillation.answer_scores import bos_ids, score_answers
from foreword.training.distillation.run import DistillationRun
from foreword.training.distillation.self_study import SelfStudyConversation, generate_texts, user_prompt

# Decoding throughput: answers at once, tokens of each, and repetitions.
DECODE_BATCH, DECODE_TOKENS, DECODE_REPEATS = 16, 16, 3


@dataclass(frozen=True)
class DistillationReport:
    """Metrics of a distilled prefix; in dictionaries ``none`` is without the text, ``full`` with the whole text.

    Attributes:
        n: test questions.
        slots: virtual tokens of the prefix.
        gap_closed: share of the gap in log-likelihood between no text and the full text that it closes, a token of the
            teacher's answers.
        logprob: mean log-probability of an answer token, by ``none``, ``full`` and ``distilled``.
        agreement: share of the answer tokens that are the most probable ones, likewise.
        f1: of words, between greedy answers and the teacher's, by ``none`` and ``distilled``; and between greedy
            answers and the references, as ``reference_none``, ``reference_full`` and so on, if there are any.
        bytes: of keys and values, ``full`` and ``distilled``.
        decode: tokens a second over `DECODE_BATCH` answers at once, likewise.
    """

    n: int
    slots: int
    gap_closed: float
    logprob: dict[str, float]
    agreement: dict[str, float]
    f1: dict[str, float]
    bytes: dict[str, int]
    decode: dict[str, float]

    @property
    def bytes_ratio(self) -> float:
        """Compression ratio: bytes of the full text's keys and values over those of the prefix."""
        return self.bytes["full"] / self.bytes["distilled"]

    @property
    def headline_metrics(self) -> dict[str, float]:
        """The metrics that the task's model card shows."""
        return {
            "gap_closed": self.gap_closed,
            "agreement": self.agreement["distilled"],
            "f1": self.f1["distilled"],
            "bytes_ratio": self.bytes_ratio,
            "questions": self.n,
        }

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "bytes_ratio": self.bytes_ratio}


def distillation_report(run: DistillationRun, engine: Engine, task: Task) -> DistillationReport:
    """Measure a task with a distilled prefix on the test conversations, as it will be served."""
    lm, document, test, gap = run.lm, run.document, run.data.test, run.test_gap
    params = SamplingParams(max_tokens=run.recipe.answer_tokens)
    bos = bos_ids(lm)
    texts = {
        "none": generate_texts(engine, [Prompt((*bos, *each.prompt), None, 0) for each in test], params),
        "distilled": generate_texts(engine, [user_prompt(lm.tokenizer, task, each.question) for each in test], params),
        "full": [lm.tokenizer.decode(each.answer, skip_special_tokens=True) for each in test],
    }
    f1 = {name: token_f1(texts[name], [[answer] for answer in texts["full"]]) for name in ("none", "distilled")}
    with_references = [number for number, references in enumerate(run.data.references) if references]
    if with_references:
        references = [run.data.references[number] for number in with_references]
        for name, answers in texts.items():
            f1[f"reference_{name}"] = token_f1([answers[number] for number in with_references], references)
    scores = {"none": gap.none, "full": gap.full, "distilled": score_answers(lm, Front(task.prefix), test)}
    return DistillationReport(
        len(test),
        task.prefix.length,
        gap.share_closed(scores["distilled"]),
        {name: each.logprob for name, each in scores.items()},
        {name: each.agreement for name, each in scores.items()},
        f1,
        {"full": document.nbytes, "distilled": task.prefix.nbytes},
        decode_throughput(engine, {"full": document.chunks[0], "distilled": task}, test),
    )


def decode_throughput(
    engine: Engine, tasks: dict[str, Task], conversations: Sequence[SelfStudyConversation]
) -> dict[str, float]:
    """Tokens a second that are decoded behind each task; the best of several turns, since others use the machine."""
    best = dict.fromkeys(tasks, 0.0)
    for _ in range(DECODE_REPEATS):
        for name, task in tasks.items():
            best[name] = max(best[name], _tokens_per_second(engine, task, conversations))
    return best


def _tokens_per_second(engine: Engine, task: Task, conversations: Sequence[SelfStudyConversation]) -> float:
    params = SamplingParams(max_tokens=DECODE_TOKENS, ignore_eos=True)
    batch = [conversations[number % len(conversations)] for number in range(DECODE_BATCH)]
    requests = [Request.from_prompt(user_prompt(engine.tokenizer, task, each.question), params) for each in batch]
    streams = [iter(engine.submit(request)) for request in requests]
    for stream in streams:
        next(stream)  # the first token comes with the prefill, which is not measured
    started, count = time.perf_counter(), 0
    for stream in streams:
        count += sum(len(chunk.token_ids) for chunk in stream)
    return count / (time.perf_counter() - started)
