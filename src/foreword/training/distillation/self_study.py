"""Self-study: the model generates questions about a text and answers them, behind the text's own keys and values.

After "Cartridges: Lightweight and general-purpose long context representations via self-study" (Eyuboglu et al. 2025,
arXiv:2506.06266): several seed prompts, each about another excerpt, so that the conversations cover the text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from foreword.core import SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import EngineError
from foreword.progress import Progress
from foreword.text import seam, task_prompts
from foreword.text.encoded_example import EncodedExample
from foreword.text.prompt import Prompt
from foreword.training.distillation.document import Document

# Tokens of an excerpt, and of its first words.
EXCERPT_TOKENS, FIRST_TOKENS = 48, 8
# Requests that wait in the engine at most, which refuses too many.
MAX_WAITING = 1024
# Questions are sampled; a small model goes off topic at a higher temperature.
QUESTION_PARAMS = SamplingParams(max_tokens=40, temperature=0.6, top_p=0.95, stop=("\n",))


@dataclass(frozen=True)
class QuestionTemplate:
    """A seed prompt of Cartridges, which the question of a conversation is generated from.

    Attributes:
        name: of the template.
        prompt: about an ``{excerpt}`` of the text, or about ``{words}``, its first few.
        openers: first words of the question, one of them drawn for each; the model generates the rest, so that a small
            model neither goes off topic nor always asks the same. Without any, the prompt itself is the question.
        share: of all conversations, in tenths.
    """

    name: str
    prompt: str
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
"""Of training conversations."""

USER_QUESTION_TEMPLATES = QUESTION_TEMPLATES[:2]
"""Of validation and test conversations: what a user would ask."""


@dataclass(frozen=True)
class Question:
    """A question about the text.

    Attributes:
        chunk: number of the chunk that it is about.
        template: name of its `QuestionTemplate`, or ``given`` for one of a file.
        question: the user's message.
    """

    chunk: int
    template: str
    question: str


@dataclass(frozen=True)
class SelfStudyConversation(Question):
    """A question and its answer, as tokens behind the text.

    Attributes:
        prompt: tokens of the question, up to the answer.
        answer: tokens of the answer, end token included.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def size(self) -> int:
        """Tokens of a forward over it."""
        return len(self.prompt) + len(self.answer) - 1

    def encoded(self) -> EncodedExample:
        """The tokens of a forward over it, and the places whose logits predict the answer's tokens."""
        token_ids = self.prompt + self.answer[:-1]
        return EncodedExample(token_ids, tuple(range(len(self.prompt) - 1, len(token_ids))))

    def to_json(self) -> dict[str, Any]:
        """Its entry in ``conversations.json``; ``seed`` is the template."""
        data = asdict(self)
        return {"seed": data.pop("template"), **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SelfStudyConversation:
        """Inverse of `to_json`."""
        prompt, answer = (tuple(map(int, data[name])) for name in ("prompt", "answer"))
        return cls(int(data["chunk"]), str(data["seed"]), str(data["question"]), prompt, answer)


def generate_questions(
    engine: Engine,
    document: Document,
    count: int,
    seed: int,
    templates: Sequence[QuestionTemplate] = QUESTION_TEMPLATES,
) -> list[Question]:
    """About ``count`` questions about excerpts of the text without duplicates, generated in one batch behind the text.

    Args:
        seed: of excerpts, openers and sampling.
        templates: of the questions, each as often as its share says.
    """
    random_source = random.Random(seed)
    excerpts = [_excerpts(engine.tokenizer, chunk, random_source) for chunk in document.chunks]
    cycle = [template for template in templates for _ in range(template.share)]
    questions: list[Question] = []
    prompts: dict[int, Prompt] = {}
    for number in range(count):
        chunk = number % len(excerpts)
        template = cycle[number // len(excerpts) % len(cycle)]
        excerpt, words = next(excerpts[chunk])
        question = template.prompt.format(excerpt=excerpt, words=words)
        if template.openers:
            opener = template.openers[random_source.randrange(len(template.openers))]
            prompts[number] = _question_prompt(engine.tokenizer, document.chunks[chunk], question, opener)
            question = opener
        questions.append(Question(chunk, template.name, question))
    rests = generate_texts(engine, list(prompts.values()), replace(QUESTION_PARAMS, seed=seed))
    for number, rest in zip(prompts, rests, strict=True):
        questions[number] = replace(questions[number], question=(questions[number].question + rest).strip())
    return list({(each.chunk, each.question): each for each in questions}.values())


def generate_answers(
    engine: Engine, document: Document, questions: Sequence[Question], params: SamplingParams
) -> list[SelfStudyConversation]:
    """The questions with the answers of the model behind the text."""
    prompts = [user_prompt(engine.tokenizer, document.chunks[each.chunk], each.question) for each in questions]
    return [
        SelfStudyConversation(each.chunk, each.template, each.question, prompt.token_ids, token_ids)
        for each, prompt, (_, token_ids) in zip(questions, prompts, _generate(engine, prompts, params), strict=True)
    ]


def most_likely_chunks(engine: Engine, document: Document, questions: Sequence[str]) -> list[int]:
    """For each question the chunk behind which it has the highest likelihood, as a question about that chunk has."""
    if len(document.chunks) == 1:
        return [0] * len(questions)
    logprobs = []
    for chunk in document.chunks:
        prompts = [user_prompt(engine.tokenizer, chunk, question) for question in questions]
        logprobs.append([float(each.sum()) for each in engine.token_logprobs(prompts)])
    return [max(range(len(logprobs)), key=lambda chunk: logprobs[chunk][n]) for n in range(len(questions))]


def user_prompt(tokenizer: Any, task: Task, message: str) -> Prompt:
    """A user's message behind a task: a chat turn behind a system turn, question and answer behind bare text."""
    if task.kind == "system":
        return task_prompts.from_messages(tokenizer, task, [{"role": "user", "content": message}])
    return task_prompts.from_text(tokenizer, task, f"\n\nQuestion: {message}\nAnswer:")


def _question_prompt(tokenizer: Any, task: Task, message: str, opener: str) -> Prompt:
    """The prompt that a question is generated from, with the question's first words behind it."""
    prompt = user_prompt(tokenizer, task, message)
    ids = seam.encode(tokenizer, opener if task.kind == "system" else f" {opener}", bos=False)
    return replace(prompt, token_ids=(*prompt.token_ids, *ids), output_indices=())


def generate_texts(engine: Engine, prompts: Sequence[Prompt], params: SamplingParams) -> list[str]:
    """The generated texts of all prompts. Raises EngineError if one of them fails."""
    return [text for text, _ in _generate(engine, prompts, params)]


def _generate(
    engine: Engine, prompts: Sequence[Prompt], params: SamplingParams
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Generated text and tokens of every prompt, each with a seed of its own. Raises EngineError if one fails."""
    requests = [
        Request.from_prompt(prompt, replace(params, seed=None if params.seed is None else params.seed + number))
        for number, prompt in enumerate(prompts)
    ]
    with Progress("writing", len(requests), "answers") as progress:
        for first in range(0, len(requests), MAX_WAITING):
            for chunks in engine.generate(requests[first : first + MAX_WAITING]):
                if chunks[-1].error is not None:
                    raise EngineError(chunks[-1].error)
                progress.advance()
                text = "".join(chunk.text for chunk in chunks)
                yield text, tuple(token for chunk in chunks for token in chunk.token_ids)


def _excerpts(tokenizer: Any, chunk: Task, random_source: random.Random) -> Iterator[tuple[str, str]]:
    """Endless excerpts of a chunk with their first words: each round covers the chunk, with other boundaries."""
    ids = seam.encode(tokenizer, chunk.text or "", bos=False)
    while True:
        shift = random_source.randrange(EXCERPT_TOKENS)
        starts = [max(0, start - shift) for start in range(0, len(ids), EXCERPT_TOKENS)]
        random_source.shuffle(starts)
        for start in starts:
            excerpt = ids[start : start + EXCERPT_TOKENS]
            yield _decode(tokenizer, excerpt), _decode(tokenizer, excerpt[:FIRST_TOKENS])


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids).replace("\ufffd", "").strip()
