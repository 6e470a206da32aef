"""Scores of labels behind many prompts, in ragged batches of a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from foreword.core import Front
from foreword.engine.residents import Residents
from foreword.models import LanguageModel
from foreword.text.question import Question
from foreword.text.request import Prompt
from foreword.text.scoring import Choice


@dataclass(eq=False)
class Piece:
    """Prompts that are scored in one forward, by the engine's thread between two steps of generation.

    Attributes:
        places: which of the caller's prompts they are.
        forward: scores ``[answers, labels]`` of those prompts, in their order.
        scores: what the caller waits for.
    """

    places: list[int]
    forward: Callable[[], Tensor]
    scores: Future[Tensor] = field(default_factory=Future)

    def run(self) -> None:
        """Keep the scores, or the error; nothing if the caller has gone."""
        if not self.scores.set_running_or_notify_cancel():
            return
        try:
            self.scores.set_result(self.forward())
        except Exception as error:  # it belongs to the caller, not to the engine
            self.scores.set_exception(error)


def pieces(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    choice: Choice,
    residents: Residents,
    budget: int,
) -> list[Piece]:
    """Divide the work.

    Args:
        residents: prefixes and adapters as the engine holds them.
        budget: tokens a piece at most (a longer prompt is a piece of its own).
    """
    found = []
    for places in _divide(prompts, choice, budget):
        first = prompts[places[0]]
        front = Front(
            prefix=residents.prefix(first.prefix, first.prefix_length),
            inner=residents.soft(first.soft),
            adapter=residents.adapter(first.adapter),
        )
        questions = [prompts[place].question for place in places]
        found.append(Piece(places, partial(_forward, lm, front, questions, choice)))
    return found


def gathered(pieces: Sequence[Piece], prompts: Sequence[Prompt], labels: int) -> Tensor:
    """Wait for all pieces: scores ``[answers, labels]`` in the order of the prompts. Raises what a piece raised."""
    starts = [0, *accumulate(len(prompt.question.places) for prompt in prompts)]
    scores = torch.empty(starts[-1], labels)
    for piece in pieces:
        rows = [row for place in piece.places for row in range(starts[place], starts[place + 1])]
        scores[rows] = piece.scores.result()
    return scores


@torch.inference_mode()
def _forward(lm: LanguageModel, front: Front, questions: list[Question], choice: Choice) -> Tensor:
    batch, rows = choice.lay_out(front, questions, lm.device)
    return choice.scores(lm.hidden(batch, rows) if choice.hidden else lm.logits(batch, rows)).float().cpu()


def _divide(prompts: Sequence[Prompt], choice: Choice, budget: int) -> Iterator[list[int]]:
    """Prompts behind the same front, of similar lengths, with what their choice adds within the budget."""
    order = sorted(range(len(prompts)), key=lambda i: (*_front(prompts[i]), len(prompts[i].token_ids)))
    piece: list[int] = []
    tokens = 0
    for place in order:
        size = choice.size(prompts[place].question)
        if piece and (_front(prompts[place]) != _front(prompts[piece[0]]) or tokens + size > budget):
            yield piece
            piece, tokens = [], 0
        piece.append(place)
        tokens += size
    if piece:
        yield piece


def _front(prompt: Prompt) -> tuple[int, int, int, int]:
    soft = prompt.soft.data_ptr() if prompt.soft is not None else 0  # slices of one task's soft tokens are one
    return id(prompt.prefix), prompt.prefix_length, soft, id(prompt.adapter)
