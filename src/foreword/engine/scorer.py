"""Verbalizer scores for many prompts, in ragged batches of a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from foreword.core import Front, KVPrefix
from foreword.models import LanguageModel
from foreword.text.request import Prompt
from foreword.text.scoring import label_scores, lay_out
from foreword.text.verbalizer import WordTrie


@dataclass(eq=False)
class Piece:
    """Prompts that are scored in one forward, by the engine's thread between two steps of generation.

    Attributes:
        places: which of the caller's prompts they are.
        forward: scores ``[len(places), labels]``.
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
    trie: WordTrie,
    resident: Callable[[KVPrefix | None, int], KVPrefix | None],
    budget: int,
) -> list[Piece]:
    """Divide the work.

    Args:
        resident: the used part of a prefix as the engine holds it.
        budget: tokens a piece at most (a longer prompt is a piece of its own).
    """
    found = []
    for places in _divide(prompts, len(trie.inner), budget):
        first = prompts[places[0]]
        front = Front(resident(first.prefix, first.prefix_length))
        ids = [prompts[place].token_ids for place in places]
        found.append(Piece(places, partial(_forward, lm, front, ids, trie)))
    return found


@torch.inference_mode()
def _forward(lm: LanguageModel, front: Front, ids: list[tuple[int, ...]], trie: WordTrie) -> Tensor:
    batch, rows = lay_out(front, ids, trie, lm.device)
    return label_scores(lm.logits(batch, rows), trie).cpu()


def _divide(prompts: Sequence[Prompt], inner: int, budget: int) -> Iterator[list[int]]:
    """Prompts behind the same prefix, of similar lengths, with their ``inner`` rows within the budget."""
    order = sorted(range(len(prompts)), key=lambda i: (*_front(prompts[i]), len(prompts[i].token_ids)))
    piece: list[int] = []
    tokens = 0
    for place in order:
        size = len(prompts[place].token_ids) + inner
        if piece and (_front(prompts[place]) != _front(prompts[piece[0]]) or tokens + size > budget):
            yield piece
            piece, tokens = [], 0
        piece.append(place)
        tokens += size
    if piece:
        yield piece


def _front(prompt: Prompt) -> tuple[int, int]:
    return id(prompt.prefix), prompt.prefix_length
