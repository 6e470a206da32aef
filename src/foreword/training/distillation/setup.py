"""`DistillationSetup`: the model, document and recipe of a distillation, and the self-study data made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.core import SamplingParams
from foreword.engine.engine import Engine
from foreword.errors import DataError, TrainingError
from foreword.models import LanguageModel
from foreword.text.rows import data_digest, read_rows
from foreword.training.distillation.document import Document
from foreword.training.distillation.recipe import DistilRecipe
from foreword.training.distillation.self_study import (
    QUESTION_TEMPLATES,
    QUESTIONS,
    Conversation,
    Question,
    generate_answers,
    generate_questions,
    likeliest_chunks,
)
from foreword.training.distillation.teacher_logits import TeacherLogits, teacher_logits

# Of answers that are learned from.
TEMPERATURE = 0.5

# Apart from one another, so that dev and test are never what is learned from.
_LEARNED, _HELD, _TEST = 0, 1, 2


@dataclass(frozen=True)
class SelfStudyData:
    """Conversations about the text.

    Attributes:
        learned: to learn from; their answers are drawn, so that they tell more than the likeliest.
        held: to choose by on the way.
        test: to measure by; no question of theirs is among the others.
        references: answers that a file of questions gives, for each of ``test``; none for self-made ones.
    """

    learned: tuple[Conversation, ...]
    held: tuple[Conversation, ...]
    test: tuple[Conversation, ...]
    references: tuple[tuple[str, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        parts = {"learned": self.learned, "held": self.held, "test": self.test}
        return {
            **{name: [each.to_json() for each in part] for name, part in parts.items()},
            "references": [list(texts) for texts in self.references],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SelfStudyData:
        """Inverse of `to_json`."""
        parts = [tuple(map(Conversation.from_json, data[name])) for name in ("learned", "held", "test")]
        return cls(*parts, references=tuple(map(tuple, data["references"])))


@dataclass(frozen=True, eq=False)
class DistillationSetup:
    """What a distillation is made from; nothing in it changes.

    Attributes:
        lm: the base model, frozen.
        document: the text.
        recipe: the settings.
    """

    lm: LanguageModel
    document: Document
    recipe: DistilRecipe

    def settings(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed: contents count, not the paths they were read from."""
        recipe = self.recipe
        return {
            **recipe.to_json(),
            "questions": data_digest(recipe.questions) if recipe.questions is not None else None,
            "eval_questions": data_digest(recipe.eval_questions) if recipe.eval_questions is not None else None,
            "text": self.document.digest,
            "kind": self.document.kind,
            "model": self.lm.identity.weights,
            "dtype": str(self.lm.dtype),
        }

    def study(self, engine: Engine) -> SelfStudyData:
        """Ask and answer, all questions of one part in one batch.

        Raises:
            DataError: a file of questions that cannot be used.
            TrainingError: the model had nothing to ask about the text.
        """
        recipe = self.recipe
        test, references = self._test(engine)
        held = _without(generate_questions(engine, self.document, recipe.held, self._seed(_HELD), QUESTIONS), test)
        learned = _without(self._learned(engine), [*held, *test])
        asked = {"learned": learned, "held": held, "test": test}
        if missing := [name for name, questions in asked.items() if not questions]:
            raise TrainingError(
                f"{self.lm.name} made no questions about the text for the part {missing[0]!r}; give some with "
                "--questions and --eval-questions, or ask for more --conversations."
            )
        greedy = SamplingParams(max_tokens=recipe.answer_tokens)
        drawn = SamplingParams(max_tokens=recipe.answer_tokens, temperature=TEMPERATURE, seed=self._seed(_LEARNED))
        answered = generate_answers(engine, self.document, [*held, *test], greedy)
        return SelfStudyData(
            tuple(generate_answers(engine, self.document, learned, drawn)),
            tuple(answered[: len(held)]),
            tuple(answered[len(held) :]),
            references,
        )

    def beliefs(self, conversations: Sequence[Conversation]) -> TeacherLogits:
        """The teacher's, of what is learned from."""
        return teacher_logits(self.lm, self.document, conversations)

    def _seed(self, part: int) -> int:
        """Far from those of other parts, which count up from theirs."""
        return (self.recipe.seed * 3 + part) * 1_000_003 % 2**31

    def _learned(self, engine: Engine) -> list[Question]:
        count = self.recipe.conversations
        if self.recipe.questions is None:
            return generate_questions(engine, self.document, count, self._seed(_LEARNED), QUESTION_TEMPLATES)
        given = [asked for asked, _ in self._given(engine, self.recipe.questions)]
        # Each is answered as often as it takes, since answers are drawn and differ.
        return (given * -(-count // len(given)))[: max(count, len(given))]

    def _test(self, engine: Engine) -> tuple[list[Question], tuple[tuple[str, ...], ...]]:
        if self.recipe.eval_questions is None:
            return generate_questions(engine, self.document, self.recipe.held, self._seed(_TEST), QUESTIONS), ()
        given = self._given(engine, self.recipe.eval_questions)
        return [asked for asked, _ in given], tuple(answers for _, answers in given)

    def _given(self, engine: Engine, file: str) -> list[tuple[Question, tuple[str, ...]]]:
        """Questions of a file with their answers, each about the chunk that makes it likeliest."""
        found = []
        for row in read_rows(Path(file)):
            question, answers = row.values.get("question"), row.values.get("answers", [])
            answers = [answers] if isinstance(answers, str) else answers
            if not isinstance(question, str) or not question.strip():
                raise DataError(f"{row.where}: field 'question' must be a text, found {question!r}.")
            if not isinstance(answers, list) or not all(isinstance(text, str) for text in answers):
                raise DataError(f"{row.where}: field 'answers' must be a text or a list of texts.")
            found.append((question.strip(), tuple(answers)))
        chunks = likeliest_chunks(engine, self.document, [question for question, _ in found])
        return [
            (Question(chunk, "given", question), answers)
            for chunk, (question, answers) in zip(chunks, found, strict=True)
        ]


def save(material: SelfStudyData, file: Path) -> None:
    """Whole or not at all."""
    partial = file.with_name(f".{file.name}")
    partial.write_text(json.dumps(material.to_json(), ensure_ascii=False), encoding="utf-8")
    partial.replace(file)


def load(file: Path) -> SelfStudyData:
    """Inverse of `save`. Raises TrainingError for a damaged file."""
    try:
        return SelfStudyData.from_json(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{file} is damaged, so the run cannot be resumed; use another --out.") from error


def _without(asked: Sequence[Question], others: Sequence[Question]) -> list[Question]:
    taken = {each.question for each in others}
    return [each for each in asked if each.question not in taken]
