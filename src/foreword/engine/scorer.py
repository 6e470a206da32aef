"""Scores of labels behind many prompts, or of the prompts' own tokens, in ragged batches of a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby

import torch
from torch import Tensor

from foreword.core import Batch, Front
from foreword.engine.device_cache import DeviceCache
from foreword.engine.job import Job
from foreword.models import LanguageModel
from foreword.text.encoded_example import EncodedExample
from foreword.text.label_scorers import LabelScorer
from foreword.text.ragged import lay_out, passes
from foreword.text.request import Prompt

Asked = tuple[Front, list[EncodedExample]]
"""Questions behind one front."""


@dataclass(frozen=True)
class ScoringSpec:
    """What is read of prompts.

    Attributes:
        forward: scores ``[answers, labels]`` of questions, each front with its own: an answer for each of a question's
            places.
        size: tokens that a question takes in a batch.
        labels: how many labels there are.
    """

    forward: Callable[[LanguageModel, Sequence[Asked]], Tensor]
    size: Callable[[EncodedExample], int]
    labels: int


@dataclass(frozen=True, eq=False)
class ScoringBatch:
    """Prompts that are scored in one forward.

    Attributes:
        places: which of the caller's prompts they are.
        job: makes the scores ``[answers, labels]`` of those prompts, in their order.
    """

    places: list[int]
    job: Job[Tensor]


def pieces(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    reading: ScoringSpec,
    residents: DeviceCache,
    budget: int,
) -> list[ScoringBatch]:
    """Divide the work.

    Args:
        residents: prefixes and adapters as the engine holds them.
        budget: tokens a piece at most (a longer prompt is a piece of its own).
    """
    found = []
    for places in _divide(prompts, reading.size, budget):
        asked = [
            (_held(prompts[alike[0]], residents), [prompts[place].question for place in alike])
            for alike in (list(group) for _, group in groupby(places, lambda place: _front(prompts[place])))
        ]
        found.append(ScoringBatch(places, Job(partial(reading.forward, lm, asked), len(places))))
    return found


def _held(prompt: Prompt, residents: DeviceCache) -> Front:
    """What a prompt stands behind, as the engine holds it."""
    return Front(
        prefix=residents.prefix(prompt.prefix, prompt.prefix_length),
        inner=residents.soft(prompt.soft),
        adapter=residents.adapter(prompt.adapter),
    )


def _together(laid_out: Sequence[tuple[Batch, Tensor]]) -> tuple[Batch, Tensor]:
    """Batches as one, and the places in it."""
    firsts = [0, *accumulate(batch.starts[-1] for batch, _ in laid_out)]
    places = [places + first for (_, places), first in zip(laid_out, firsts, strict=False)]
    return Batch.together([batch for batch, _ in laid_out]), torch.cat(places)


def gathered(pieces: Sequence[ScoringBatch], prompts: Sequence[Prompt], labels: int) -> Tensor:
    """Wait for all pieces: scores ``[answers, labels]`` in the order of the prompts. Raises what a piece raised."""
    starts = [0, *accumulate(len(prompt.question.places) for prompt in prompts)]
    scores = torch.empty(starts[-1], labels)
    for piece in pieces:
        rows = [row for place in piece.places for row in range(starts[place], starts[place + 1])]
        scores[rows] = piece.job.result()
    return scores


def by_choice(choice: LabelScorer) -> ScoringSpec:
    """The scores of a choice's labels."""

    @torch.inference_mode()
    def forward(lm: LanguageModel, asked: Sequence[Asked]) -> Tensor:
        batch, rows = _together([choice.lay_out(front, questions, lm.device) for front, questions in asked])
        return choice.scores(lm.hidden(batch, rows) if choice.hidden else lm.logits(batch, rows)).float().cpu()

    return ScoringSpec(forward, choice.size, choice.labels)


def following(at_once: int, top: int = 0) -> ScoringSpec:
    """The log-probability of the token that stands behind each place.

    Args:
        at_once: rows of logits that are held at a time; a question with more places is run once for each part of them.
        top: how many of the most probable tokens are read, too. Behind the first column stand their ids, best first,
            and behind these their log-probabilities.
    """

    @torch.inference_mode()
    def forward(lm: LanguageModel, asked: Sequence[Asked]) -> Tensor:
        run = [
            (front, [EncodedExample(q.token_ids[: _read(q)], q.places) for q in questions])
            for front, questions in asked
        ]
        batch, rows = _together([lay_out(*each, lm.device, decoder=lm.decoder) for each in run])
        tokens = [q.token_ids[place + 1] for _, questions in asked for q in questions for place in q.places]
        parts = zip(rows.split(at_once), torch.tensor(tokens, device=lm.device).split(at_once), strict=True)
        return torch.cat([_logprobs(lm.logits(batch, part), wanted, top) for part, wanted in parts]).cpu()

    return ScoringSpec(forward, _read, 1 + 2 * top)


def _read(question: EncodedExample) -> int:
    """Tokens of a question up to its last place: what stands behind is predicted and never run."""
    return question.places[-1] + 1


def _logprobs(logits: Tensor, tokens: Tensor, top: int) -> Tensor:
    """``[K, 1 + 2 * top]`` float32 of ``tokens [K]`` from logits ``[K, vocab]``."""
    # A log-softmax would be one more copy of the whole vocabulary.
    total = logits.float().logsumexp(-1)[:, None]
    own = logits.gather(1, tokens[:, None]).float() - total
    best = logits.float().topk(top)  # ids below 2 ** 24 are exact in float32
    return torch.cat([own, best.indices.float(), best.values - total], dim=1)


def _divide(prompts: Sequence[Prompt], size: Callable[[EncodedExample], int], budget: int) -> Iterator[list[int]]:
    """Prompts behind the same front next to each other, by their lengths, within the budget."""
    order = sorted(range(len(prompts)), key=lambda i: (*_front(prompts[i]), len(prompts[i].token_ids)))
    return passes([(place, size(prompts[place].question)) for place in order], budget)


def _front(prompt: Prompt) -> tuple[int, int, int, int]:
    soft = prompt.soft.data_ptr() if prompt.soft is not None else 0  # slices of one task's soft tokens are one
    return id(prompt.prefix), prompt.prefix_length, soft, id(prompt.adapter)
