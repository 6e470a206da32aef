"""Questions with a choice of words: laid out as one ragged batch, and its logits turned into a score a label.

Training and every PyTorch engine use these two functions, so that what is learned is what is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from foreword.core import Batch, Front

if TYPE_CHECKING:
    import torch

    from foreword.text.verbalizer import WordTrie


def lay_out(
    front: Front, prompts: Sequence[Sequence[int]], trie: WordTrie, device: torch.device | str | None = None
) -> tuple[Batch, torch.Tensor]:
    """Each prompt once, and behind it one row for every inner node of the trie.

    Returns:
        The batch, and the places ``[len(prompts) * (1 + inner)]`` whose logits `label_scores` needs: for every
        prompt its last token, then its inner nodes.
    """
    import torch

    rows: list[Sequence[int]] = []
    parents: list[int | None] = []
    for prompt in prompts:
        at: dict[int | None, int] = {None: len(rows)}
        rows.append(prompt)
        parents.append(None)
        for node in trie.inner:
            at[node] = len(rows)
            rows.append((trie.tokens[node],))
            parents.append(at[trie.parents[node]])
    batch = Batch.behind(front, rows, parents, device)
    ends = torch.tensor(batch.starts[-len(rows) :], device=device) - 1
    return batch, ends


def label_scores(logits: torch.Tensor, trie: WordTrie) -> torch.Tensor:
    """Log-probability of every label.

    Args:
        logits: ``[prompts * (1 + inner), vocab]`` at the places that `lay_out` gave.

    Returns:
        ``[prompts, labels]`` float32: ``logsumexp`` over a label's words of the sum of their tokens'
        log-probabilities.
    """
    import torch

    slots: dict[int | None, int] = {None: 0} | {node: 1 + index for index, node in enumerate(trie.inner)}
    rows = logits.unflatten(0, (-1, len(slots)))
    above = torch.tensor([slots[parent] for parent in trie.parents], device=logits.device)
    tokens = torch.tensor(trie.tokens, device=logits.device)
    # Only the nodes' own logits are normalized: a log-softmax would be one more copy of the whole vocabulary.
    norms = rows.float().logsumexp(-1)
    return trie.label_scores(rows[:, above, tokens].float() - norms[:, above])
