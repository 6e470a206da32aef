"""`SelfStudyData`: conversations about a text, split into training, validation and test conversations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foreword.core import SamplingParams
from foreword.core.json_reader import parse_json, read_document
from foreword.engine.engine import Engine
from foreword.errors import DataError, TrainingError
from foreword.text.rows import read_rows
from foreword.training.distillation.document import Document
from foreword.training.distillation.recipe import DistilRecipe
from foreword.training.distillation.self_study import (
    QUESTION_TEMPLATES,
    USER_QUESTION_TEMPLATES,
    Question,
    SelfStudyConversation,
    generate_answers,
    generate_questions,
    most_likely_chunks,
)
from foreword.training.loop.atomic_write import atomic_write

# Of the sampled answers of training conversations.
TEMPERATURE = 0.5

# Splits, whose seeds are far apart, since those of their requests count up from them.
_TRAIN, _VALIDATION, _TEST = 0, 1, 2

References = tuple[tuple[str, ...], ...]
"""Reference answers of every test question."""


@dataclass(frozen=True)
class SelfStudyData:
    """Conversations about the text.

    Attributes:
        train: to learn from; their answers are sampled, which tells more of the teacher than greedy ones.
        validation: for evaluations while learning; greedy answers.
        test: for the report, with questions that are in neither of the others; greedy answers.
        references: reference answers of ``test``, if a file gives any.
    """

    train: tuple[SelfStudyConversation, ...]
    validation: tuple[SelfStudyConversation, ...]
    test: tuple[SelfStudyConversation, ...]
    references: References = ()

    @classmethod
    def generate(cls, engine: Engine, document: Document, recipe: DistilRecipe) -> SelfStudyData:
        """Generate questions, or read them from files, and generate their answers.

        Raises:
            DataError: a file of questions that cannot be used.
            TrainingError: the model generated no questions for one of the splits.
        """
        test, references = _test_questions(engine, document, recipe)
        validation = _without(_generated(engine, document, recipe, _VALIDATION), test)
        train = _without(_train_questions(engine, document, recipe), [*validation, *test])
        splits = {"learned": train, "held": validation, "test": test}
        if missing := [name for name, questions in splits.items() if not questions]:
            raise TrainingError(
                f"{engine.name} made no questions about the text for the part {missing[0]!r}; give some with "
                "--questions and --eval-questions, or ask for more --conversations."
            )
        greedy = SamplingParams(max_tokens=recipe.answer_tokens)
        sampled = SamplingParams(
            max_tokens=recipe.answer_tokens, temperature=TEMPERATURE, seed=_split_seed(recipe, _TRAIN)
        )
        answered = generate_answers(engine, document, [*validation, *test], greedy)
        return cls(
            tuple(generate_answers(engine, document, train, sampled)),
            tuple(answered[: len(validation)]),
            tuple(answered[len(validation) :]),
            references,
        )

    def save(self, file: Path) -> None:
        """Write JSON atomically."""
        splits = {"learned": self.train, "held": self.validation, "test": self.test}
        data = {name: [each.to_json() for each in split] for name, split in splits.items()}
        text = json.dumps({**data, "references": self.references}, ensure_ascii=False)
        with atomic_write(file) as partial:
            partial.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> SelfStudyData:
        """Inverse of `save`. Raises TrainingError for a damaged file."""
        try:
            data = parse_json(read_document(file))
            splits = [tuple(map(SelfStudyConversation.from_json, data[name])) for name in ("learned", "held", "test")]
            return cls(*splits, references=tuple(tuple(map(str, texts)) for texts in data["references"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{file} is damaged, so the run cannot be resumed; use another --out.") from error


def _train_questions(engine: Engine, document: Document, recipe: DistilRecipe) -> list[Question]:
    if recipe.questions is None:
        return _generated(engine, document, recipe, _TRAIN)
    questions = [question for question, _ in _read_questions(engine, document, recipe.questions)]
    # Each is repeated as often as needed, since its answers are sampled and differ.
    repeats = -(-recipe.conversations // len(questions))
    return (questions * repeats)[: max(recipe.conversations, len(questions))]


def _test_questions(engine: Engine, document: Document, recipe: DistilRecipe) -> tuple[list[Question], References]:
    if recipe.eval_questions is None:
        return _generated(engine, document, recipe, _TEST), ()
    rows = _read_questions(engine, document, recipe.eval_questions)
    return [question for question, _ in rows], tuple(answers for _, answers in rows)


def _generated(engine: Engine, document: Document, recipe: DistilRecipe, split: int) -> list[Question]:
    count, templates = recipe.held, USER_QUESTION_TEMPLATES
    if split == _TRAIN:
        count, templates = recipe.conversations, QUESTION_TEMPLATES
    return generate_questions(engine, document, count, _split_seed(recipe, split), templates)


def _split_seed(recipe: DistilRecipe, split: int) -> int:
    return (recipe.seed * 3 + split) * 1_000_003 % 2**31


def _read_questions(engine: Engine, document: Document, file: str) -> list[tuple[Question, tuple[str, ...]]]:
    """Questions of a file with their reference answers, each about the chunk that makes it likeliest."""
    rows: list[tuple[str, tuple[str, ...]]] = []
    for row in read_rows(Path(file)):
        question, answers = row.values.get("question"), row.values.get("answers", [])
        answers = [answers] if isinstance(answers, str) else answers
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{row.where}: field 'question' must be a text, found {question!r}.")
        if not isinstance(answers, list) or not all(isinstance(text, str) for text in answers):
            raise DataError(f"{row.where}: field 'answers' must be a text or a list of texts.")
        rows.append((question.strip(), tuple(answers)))
    chunks = most_likely_chunks(engine, document, [question for question, _ in rows])
    return [
        (Question(chunk, "given", question), answers) for chunk, (question, answers) in zip(chunks, rows, strict=True)
    ]


def _without(questions: Sequence[Question], others: Sequence[Question]) -> list[Question]:
    """Questions that are not among others, word for word."""
    texts = {other.question for other in others}
    return [question for question in questions if question.question not in texts]
