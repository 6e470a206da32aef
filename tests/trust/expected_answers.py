"""`ExpectedAnswers`: what each task must say, by single runs of an engine that nobody else asks."""

from __future__ import annotations

import random
from dataclasses import dataclass

from foreword.core import SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.evaluation.predict import classify
from foreword.models import LanguageModel
from foreword.text.task_prompts import from_text

TOKENS = 6
MARGIN = 1e-3
"""How much more probable the chosen token is than the next one, at least: rounding never decides."""
CLOSE = 1e-3
"""Of probabilities of labels."""

Answer = tuple[int, ...] | float
"""Token ids, or the probability of the first label."""


@dataclass(frozen=True)
class Question:
    """A text for a task, and the right answer to it."""

    text: str
    answer: Answer

    def is_answered_by(self, found: Answer) -> bool:
        if isinstance(self.answer, float) or isinstance(found, float):
            return abs(self.answer - found) < CLOSE  # type: ignore[operator] - both are, or it raises
        return self.answer == found


class ExpectedAnswers:
    """Asks an engine that runs one request at a time and keeps nothing of it."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._engine = Engine(lm, cache_bytes=1 << 24, max_batch=1, reuse=False)
        self._draw = random.Random(0)
        self._given: set[Answer] = set()

    def __enter__(self) -> ExpectedAnswers:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def question(self, task: Task) -> Question:
        """A random text whose answer does not hang on rounding, and is the answer of no other question."""
        while True:
            text = "".join(self._draw.choices("abcdefghijklmnopqrstuvwxyz ", k=self._draw.randint(4, 24)))
            if (found := self.answer(task, text)) is not None and found not in self._given:
                self._given.add(found)
                return Question(text, found)

    def answer(self, task: Task, text: str) -> Answer | None:
        """The answer to a text; ``None`` where rounding could decide."""
        if task.verbalizer is not None:
            return next(iter(classify(self._engine, task, [{"text": text}])[0].values()))
        sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True, logprobs=2)
        request = Request.from_prompt(from_text(self._lm.tokenizer, task, text), sampling)
        chunks = list(self._engine.submit(request))
        margins = [each.top[0][1] - each.top[1][1] for chunk in chunks for each in chunk.logprobs]
        if min(margins) < MARGIN:
            return None
        return tuple(token for chunk in chunks for token in chunk.token_ids)
