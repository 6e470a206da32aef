"""Verbalizer scores for many prompts, in ragged batches of a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from foreword.core import Front, KVPrefix
from foreword.models import LanguageModel
from foreword.text.request import Prompt
from foreword.text.scoring import label_scores, lay_out
from foreword.text.verbalizer import WordTrie


def score(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    trie: WordTrie,
    resident: Callable[[KVPrefix | None, int], KVPrefix | None],
    budget: int,
) -> Iterator[Callable[[], tuple[list[int], Tensor]]]:
    """Pieces of work, each ``() -> (places in prompts, scores [len(places), labels])``.

    Args:
        resident: the used part of a prefix as the engine holds it.
        budget: tokens a piece at most (a longer prompt is a piece of its own).
    """
    for places in _pieces(prompts, budget):
        first = prompts[places[0]]
        front = Front(resident(first.prefix, first.prefix_length))
        ids = [prompts[place].token_ids for place in places]

        def piece(front: Front = front, ids: list[tuple[int, ...]] = ids, places: list[int] = places):
            batch, rows = lay_out(front, ids, trie, lm.device)
            with torch.inference_mode():
                return places, label_scores(lm.logits(batch, rows), trie)

        yield piece


def _pieces(prompts: Sequence[Prompt], budget: int) -> Iterator[list[int]]:
    """Prompts behind the same prefix, of similar lengths, within the budget."""
    order = sorted(range(len(prompts)), key=lambda i: (*_front(prompts[i]), len(prompts[i].token_ids)))
    piece: list[int] = []
    tokens = 0
    for place in order:
        size = len(prompts[place].token_ids)
        if piece and (_front(prompts[place]) != _front(prompts[piece[0]]) or tokens + size > budget):
            yield piece
            piece, tokens = [], 0
        piece.append(place)
        tokens += size
    if piece:
        yield piece


def _front(prompt: Prompt) -> tuple[int, int]:
    return id(prompt.prefix), prompt.prefix_length
