"""Self-study: conversations about a text that the model makes by itself, behind the text's own keys and values.

After "Cartridges: Lightweight and general-purpose long context representations via self-study" (Eyuboglu et al. 2025,
arXiv:2506.06266): several seed prompts, each about another excerpt, so that the conversations spread over the text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from foreword.core import SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import EngineError
from foreword.progress import Progress
from foreword.text import request, seam
from foreword.text.request import Prompt
from foreword.training.distillation.document import Document

# Tokens of an excerpt that a seed prompt is about.
EXCERPT = 48
# Requests that wait in the engine at most, which refuses too many.
WAITING = 1024
# How questions are written: a small model strays at a higher temperature.
ASKING = SamplingParams(max_tokens=40, temperature=0.6, top_p=0.95, stop=("\n",))


@dataclass(frozen=True)
class QuestionTemplate:
    """One way to begin a conversation.

    Attributes:
        name: what it is called.
        message: a message about ``{excerpt}``; or about ``{words}``, the first few of them.
        openers: what the model answers it with is the user's message, which begins with one of these in turn, so that
            a small model neither strays nor always asks the same; without any, the message itself is the user's.
        share: of all conversations, in tenths.
    """

    name: str
    message: str
    openers: tuple[str, ...]
    share: int


QUESTION_TEMPLATES = (
    QuestionTemplate(
        "question",
        'Here is a part of the text above: "{excerpt}"\nWrite one question that this part answers.',
        ("What", "Who", "How", "When", "Why", "Where", "Which", "What is", "How many", "What does", "Is", "Does"),
        share=5,
    ),
    QuestionTemplate(
        "use",
        'Here is a part of the text above: "{excerpt}"\nWrite what somebody who needs this part would ask, in one '
        "sentence.",
        ("I want", "Can I", "How do I", "I need", "Can you explain", "What should I do if", "Tell me"),
        share=2,
    ),
    QuestionTemplate("summary", 'Summarize what the text says where it begins with "{words}".', (), share=1),
    QuestionTemplate("list", 'List the facts that the text gives about "{words}".', (), share=1),
    QuestionTemplate("quote", 'Quote the text from "{words}" on.', (), share=1),
)
"""What conversations are learned from."""

QUESTIONS = QUESTION_TEMPLATES[:2]
"""Those that are measured by: what a user would ask."""


@dataclass(frozen=True)
class Conversation:
    """A question and its answer, in tokens behind the text.

    Attributes:
        chunk: number of the chunk that it is about.
        seed: name of its seed, or ``given``.
        question: the user's message.
        prompt: tokens up to the answer.
        answer: tokens of the answer, the one that ends it included.
    """

    chunk: int
    seed: str
    question: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Conversation:
        """Inverse of `to_json`."""
        return cls(**{**data, "prompt": tuple(data["prompt"]), "answer": tuple(data["answer"])})


@dataclass(frozen=True)
class Question:
    """A question before it is answered; attributes as those of `Conversation`."""

    chunk: int
    seed: str
    question: str


def generate_questions(
    engine: Engine, document: Document, count: int, seed: int, seeds: Sequence[QuestionTemplate] = QUESTION_TEMPLATES
) -> list[Question]:
    """About ``count`` questions about excerpts of the text, none twice; all in one batch behind the text.

    Args:
        seed: of excerpts and sampling.
        seeds: how conversations begin, each as often as its share says.
    """
    source = random.Random(seed)
    parts = [_excerpts(engine.tokenizer, chunk, source) for chunk in document.chunks]
    turns = [each for each in seeds for _ in range(each.share)]
    openers = {each.name: each.openers for each in seeds}
    drafts: list[Question] = []
    prompts: list[Prompt] = []
    for number in range(count):
        chunk, turn = number % len(parts), number // len(parts)
        each = turns[turn % len(turns)]
        excerpt, words = next(parts[chunk])
        message = each.message.format(excerpt=excerpt, words=words)
        opener = each.openers[source.randrange(len(each.openers))] if each.openers else ""
        drafts.append(Question(chunk, each.name, opener or message))
        if opener:
            task = document.chunks[chunk]
            prompts.append(_opened(engine.tokenizer, task, said(engine.tokenizer, task, message), opener))
    rest = iter([text for text, _ in written(engine, prompts, replace(ASKING, seed=seed))])
    asked = [
        replace(draft, question=(draft.question + next(rest)).strip()) if openers[draft.seed] else draft
        for draft in drafts
    ]
    return list({(each.chunk, each.question): each for each in asked}.values())


def generate_answers(
    engine: Engine, document: Document, asked: Sequence[Question], params: SamplingParams
) -> list[Conversation]:
    """What the model that sees the text answers."""
    prompts = [said(engine.tokenizer, document.chunks[each.chunk], each.question) for each in asked]
    return [
        Conversation(each.chunk, each.seed, each.question, prompt.token_ids, token_ids)
        for each, prompt, (_, token_ids) in zip(asked, prompts, written(engine, prompts, params), strict=True)
    ]


def likeliest_chunks(engine: Engine, document: Document, questions: Sequence[str]) -> list[int]:
    """The chunk behind which each question is likeliest, as one is that is about it."""
    if len(document.chunks) == 1:
        return [0] * len(questions)
    sums = []
    for chunk in document.chunks:
        found = engine.token_logprobs([said(engine.tokenizer, chunk, question) for question in questions])
        sums.append([float(each.sum()) for each in found])
    return [max(range(len(sums)), key=lambda chunk: sums[chunk][number]) for number in range(len(questions))]


def said(tokenizer: Any, task: Task, message: str) -> Prompt:
    """A user's message as the text is used: a chat behind a system turn, question and answer behind bare text."""
    if task.kind == "system":
        return request.from_messages(tokenizer, task, [{"role": "user", "content": message}])
    return request.from_text(tokenizer, task, f"\n\nQuestion: {message}\nAnswer:")


def _opened(tokenizer: Any, task: Task, prompt: Prompt, opener: str) -> Prompt:
    """The prompt with the first words of its answer behind it."""
    ids = seam.encode(tokenizer, opener if task.kind == "system" else f" {opener}", bos=False)
    return replace(prompt, token_ids=(*prompt.token_ids, *ids), places=())


def written(engine: Engine, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Text and tokens of every answer, all in one batch. Raises EngineError if one of them fails."""
    requests = [
        Request.from_prompt(prompt, replace(params, seed=None if params.seed is None else params.seed + number))
        for number, prompt in enumerate(prompts)
    ]
    with Progress("writing", len(requests), "answers") as progress:
        for first in range(0, len(requests), WAITING):
            for chunks in engine.generate(requests[first : first + WAITING]):
                if chunks[-1].error is not None:
                    raise EngineError(chunks[-1].error)
                progress.advance()
                text = "".join(chunk.text for chunk in chunks)
                yield text, tuple(token for chunk in chunks for token in chunk.token_ids)


def _excerpts(tokenizer: Any, chunk: Task, source: random.Random) -> Iterator[tuple[str, str]]:
    """Excerpts of a chunk and their first words: a round of them covers it, and every round is cut elsewhere."""
    ids = seam.encode(tokenizer, chunk.text or "", bos=False)
    while True:
        shift = source.randrange(EXCERPT)
        starts = [max(0, start - shift) for start in range(0, len(ids), EXCERPT)]
        source.shuffle(starts)
        for start in starts:
            part = ids[start : start + EXCERPT]
            yield _text(tokenizer, part), _text(tokenizer, part[:8])


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids).replace("\ufffd", "").strip()
