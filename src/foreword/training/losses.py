"""What is learned from a batch: the right label's score, or the tokens of the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from foreword.core import Batch, Front
from foreword.models import LanguageModel
from foreword.text.scoring import label_scores, lay_out
from foreword.text.verbalizer import WordTrie
from foreword.training.data import Example

Loss = Callable[[LanguageModel, Front, Sequence[Example]], Tensor]


def label_loss(trie: WordTrie) -> Loss:
    """Cross-entropy over the scores that serving compares, the mean over examples."""

    def loss(lm: LanguageModel, front: Front, examples: Sequence[Example]) -> Tensor:
        batch, rows = lay_out(front, [example.prompt for example in examples], trie, lm.device)
        scores = label_scores(lm.logits(batch, rows), trie)
        return F.cross_entropy(scores, torch.tensor([example.label for example in examples], device=lm.device))

    return loss


def answer_loss(lm: LanguageModel, front: Front, examples: Sequence[Example]) -> Tensor:
    """Cross-entropy of the answers' tokens, the mean over tokens; logits only where there is an answer."""
    rows = [example.prompt + example.target[:-1] for example in examples]
    batch = Batch.behind(front, rows, device=lm.device)
    places = [
        place
        for example, start, row in zip(examples, batch.starts[-len(rows) - 1 : -1], rows, strict=True)
        for place in range(start + len(example.prompt) - 1, start + len(row))
    ]
    targets = [token for example in examples for token in example.target]
    logits = lm.logits(batch, torch.tensor(places, device=lm.device))
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, torch.tensor(targets, device=lm.device))
