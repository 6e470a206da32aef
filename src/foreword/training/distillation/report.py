"""`DistillationReport`: what a distilled prefix is worth beside the text that it stands for, and what it saves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foreword.core import Front, SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.evaluation.text_metrics import token_f1
from foreword.models import LanguageModel
from foreword.text.request import Prompt
from foreword.training.distillation.evaluator import LikelihoodGap, leading, score_answers
from foreword.training.distillation.self_study import Conversation, said, written
from foreword.training.distillation.setup import DistillationSetup, SelfStudyData

# Answers that are written at once to see how fast that goes, tokens of each, and how often.
SPEED_BATCH, SPEED_TOKENS, SPEED_TURNS = 16, 16, 3


@dataclass(frozen=True)
class DistillationReport:
    """Figures of a distilled prefix.

    Attributes:
        n: questions that it was measured by.
        slots: its virtual tokens.
        gap_closed: share of the log-likelihood between no text and the full text that it brings back, a token of the
            teacher's answers.
        logprob: mean log-probability of a token of these answers, by ``none``, ``full`` and ``distilled``.
        agreement: share of their tokens that are the most probable ones, likewise.
        f1: of words, between greedy answers and the teacher's, by ``none`` and ``distilled``; and between greedy
            answers and the references, as ``reference_none``, ``reference_full`` and so on, if there are any.
        bytes: of keys and values, ``full`` and ``distilled``.
        decode: tokens a second over `SPEED_BATCH` answers at once, likewise.
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
        """How many times fewer bytes."""
        return self.bytes["full"] / self.bytes["distilled"]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "bytes_ratio": self.bytes_ratio}


def measure(
    plan: DistillationSetup, engine: Engine, material: SelfStudyData, gap: LikelihoodGap, task: Task
) -> DistillationReport:
    """Measure a task as it will be served.

    Args:
        gap: of the conversations to measure by.
        task: with the distilled prefix.
    """
    lm, document, test = plan.lm, plan.document, material.test
    found = score_answers(lm, [Front(task.prefix)] * len(document.chunks), test)
    params = SamplingParams(max_tokens=plan.recipe.answer_tokens)
    texts = {
        "none": answers(engine, [Prompt(prompt_ids(lm, each), None, 0) for each in test], params),
        "distilled": answers(engine, [said(lm.tokenizer, task, each.question) for each in test], params),
        "full": [lm.tokenizer.decode(each.answer, skip_special_tokens=True) for each in test],
    }
    f1 = {name: token_f1(texts[name], [[right] for right in texts["full"]]) for name in ("none", "distilled")}
    if any(material.references):
        rows = [number for number, known in enumerate(material.references) if known]
        right = [material.references[number] for number in rows]
        f1 |= {f"reference_{name}": token_f1([said_[n] for n in rows], right) for name, said_ in texts.items()}
    verdicts = {"none": gap.none, "full": gap.full, "distilled": found}
    return DistillationReport(
        len(test),
        task.prefix.length,
        gap.closed(found),
        {name: each.logprob for name, each in verdicts.items()},
        {name: each.agreement for name, each in verdicts.items()},
        f1,
        {"full": document.nbytes, "distilled": task.prefix.nbytes},
        speeds(engine, {"full": document.chunks[0], "distilled": task}, test),
    )


def prompt_ids(lm: LanguageModel, conversation: Conversation) -> tuple[int, ...]:
    """The tokens that are asked with nothing in front."""
    return (*leading(lm), *conversation.prompt)


def answers(engine: Engine, prompts: Sequence[Prompt], params: SamplingParams) -> list[str]:
    """Texts of all answers."""
    return [text for text, _ in written(engine, prompts, params)]


def speeds(engine: Engine, tasks: dict[str, Task], conversations: Sequence[Conversation]) -> dict[str, float]:
    """Tokens a second that are written behind each task, by turns and the best of them: others use the machine, too."""
    best = dict.fromkeys(tasks, 0.0)
    for _ in range(SPEED_TURNS):
        for name, task in tasks.items():
            best[name] = max(best[name], _speed(engine, task, conversations))
    return best


def _speed(engine: Engine, task: Task, conversations: Sequence[Conversation]) -> float:
    params = SamplingParams(max_tokens=SPEED_TOKENS, ignore_eos=True)
    some = [conversations[number % len(conversations)] for number in range(SPEED_BATCH)]
    requests = [Request.from_prompt(said(engine.tokenizer, task, each.question), params) for each in some]
    streams = [iter(engine.submit(request)) for request in requests]
    for stream in streams:
        next(stream)  # the first token comes with the prompt, which is not what is measured
    started, count = time.perf_counter(), 0
    for stream in streams:
        count += sum(len(chunk.token_ids) for chunk in stream)
    return count / (time.perf_counter() - started)
