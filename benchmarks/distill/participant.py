"""One text distilled as the command line would, and what stands beside it, on the same questions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foreword.bench.worker import Handlers
from foreword.core import Front, SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.evaluation.text_metrics import token_f1
from foreword.models import LanguageModel, load_model
from foreword.text import seam
from foreword.training.distillation.answer_scores import LikelihoodGap, score_answers
from foreword.training.distillation.distill import distill
from foreword.training.distillation.document import Document
from foreword.training.distillation.recipe import DistilRecipe
from foreword.training.distillation.run import CACHE_BYTES
from foreword.training.distillation.self_study import (
    Question,
    SelfStudyConversation,
    generate_answers,
    generate_texts,
    user_prompt,
)
from foreword.training.distillation.self_study_data import SelfStudyData

SUMMARIZE = "Summarize the whole text in a few sentences."


def start(settings: Mapping[str, Any]) -> Handlers:
    """See `figures`."""
    return {"figures": lambda: figures(settings)}


def figures(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Distill ``text`` by ``recipe``, and measure it beside ``peers`` and on ``questions`` of the data set, if any."""
    lm = load_model(settings["model"], device="cpu")
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        recipe = DistilRecipe(**settings["recipe"], out=folder)
        made = distill(lm, settings["text"], recipe, kind=settings["kind"], name="bench")
        seconds = time.perf_counter() - began
        test = SelfStudyData.load(Path(folder) / "conversations.json").test
    document = Document.prefill(lm, settings["kind"], settings["text"])
    gap = LikelihoodGap.measure(lm, document, test)
    with Engine(lm, cache_bytes=CACHE_BYTES) as engine:
        alternatives = Alternatives(lm, engine, document, recipe)
        return {
            **made.report.to_json(),
            "seconds": seconds,
            **made.training_stats,
            "text_tokens": document.tokens,
            "peers": {name: alternatives.peer(name, test, gap) for name in settings["peers"] if name in SHORTER},
            "own": alternatives.own(made.task, settings["questions"]) if settings["questions"] else None,
        }


@dataclass(frozen=True, eq=False)
class Alternatives:
    """What a distilled text is measured beside.

    Attributes:
        lm: the base model.
        engine: serves it.
        document: the text.
        recipe: of the distillation.
    """

    lm: LanguageModel
    engine: Engine
    document: Document
    recipe: DistilRecipe

    def peer(self, name: str, test: Sequence[SelfStudyConversation], gap: LikelihoodGap) -> dict[str, Any]:
        """Figures of a shorter text that stands where the text does."""
        task = Document.prefill(self.lm, self.document.kind, SHORTER[name](self)).chunks[0]
        found = score_answers(self.lm, Front(task.prefix), test)
        texts = self._answers(task, [each.question for each in test])
        right = [[self.lm.tokenizer.decode(each.answer, skip_special_tokens=True)] for each in test]
        return {
            "gap_closed": gap.share_closed(found),
            "agreement": found.agreement,
            "f1": token_f1(texts, right),
            "bytes": task.prefix.nbytes,
        }

    def own(self, task: Task, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The gap on questions that people asked about the text, and F1 of answers with theirs."""
        params = SamplingParams(max_tokens=self.recipe.answer_tokens)
        asked = [Question(0, "given", row["question"]) for row in rows]
        talks = generate_answers(self.engine, self.document, asked, params)
        questions, right = [row["question"] for row in rows], [row["answers"] for row in rows]
        full = [self.lm.tokenizer.decode(each.answer, skip_special_tokens=True) for each in talks]
        return {
            "n": len(rows),
            "gap_closed": LikelihoodGap.measure(self.lm, self.document, talks).share_closed(
                score_answers(self.lm, Front(task.prefix), talks)
            ),
            "f1_full": token_f1(full, right),
            "f1_distilled": token_f1(self._answers(task, questions), right),
        }

    def first_tokens(self) -> str:
        """As many tokens of the text as there are slots."""
        ids = seam.encode(self.lm.tokenizer, self.document.text, bos=False)
        return self.lm.tokenizer.decode(ids[: self.recipe.slots])

    def summary(self) -> str:
        """What the model itself says about the text in as many tokens."""
        prompt = user_prompt(self.lm.tokenizer, self.document.chunks[0], SUMMARIZE)
        return generate_texts(self.engine, [prompt], SamplingParams(max_tokens=self.recipe.slots))[0]

    def _answers(self, task: Task, questions: Sequence[str]) -> list[str]:
        prompts = [user_prompt(self.lm.tokenizer, task, question) for question in questions]
        return generate_texts(self.engine, prompts, SamplingParams(max_tokens=self.recipe.answer_tokens))


SHORTER: Mapping[str, Callable[[Alternatives], str]] = {
    "first_tokens": Alternatives.first_tokens,
    "summary": Alternatives.summary,
}
"""Texts of the peers that are shorter texts."""
