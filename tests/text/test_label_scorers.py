"""Batches of scored examples, and label scores from logits."""

from __future__ import annotations

import torch

from foreword.core import Front
from foreword.text.encoded_example import EncodedExample
from foreword.text.label_scorers import WordScorer
from foreword.text.verbalizer import WordTrie

# " fair" | " fair ly" | " far" under two labels: a shared first token, and a word that begins another.
SCORER = WordScorer(WordTrie.build([(0, (3, 4)), (1, (3, 4, 5)), (1, (3, 6)), (0, (7,))], 2))


def examples(*rows: tuple[int, ...]) -> list[EncodedExample]:
    return [EncodedExample(row, (len(row) - 1,)) for row in rows]


def test_every_prompt_runs_once_with_a_row_for_every_inner_node():
    batch, indices = SCORER.make_batch(Front(), examples((10, 11), (12,)))
    assert batch.lengths == (2, 1, 1, 1, 1, 1)
    assert batch.parents == (None, 0, 1, None, 3, 4)
    assert batch.token_ids.tolist() == [10, 11, 3, 4, 12, 3, 4]
    assert indices.tolist() == [1, 2, 3, 4, 5, 6]


def test_soft_tokens_move_the_output_indices():
    batch, indices = SCORER.make_batch(Front(soft=torch.zeros(5, 8)), examples((10, 11)))
    assert batch.lengths == (5, 2, 1, 1)
    assert indices.tolist() == [6, 7, 8]


def test_scores_are_sums_along_words_and_logsumexp_over_them():
    logits = torch.randn(2 * 3, 9, generator=torch.Generator().manual_seed(0))
    found = SCORER.scores(logits)
    for prompt, (root, after_3, after_4) in enumerate(logits.log_softmax(-1).unflatten(0, (2, 3))):
        fair = root[3] + after_3[4]
        first = torch.stack([fair, root[7]]).logsumexp(0)
        second = torch.stack([fair + after_4[5], root[3] + after_3[6]]).logsumexp(0)
        torch.testing.assert_close(found[prompt], torch.stack([first, second]))


def test_scores_are_float32_and_have_gradients():
    logits = torch.randn(3, 9, dtype=torch.bfloat16, requires_grad=True)
    found = SCORER.scores(logits)
    assert found.dtype == torch.float32
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    expected = logits.detach().float().requires_grad_()
    (wanted,) = torch.autograd.grad(SCORER.scores(expected).sum(), expected)
    torch.testing.assert_close(gradient.float(), wanted, atol=1e-2, rtol=1e-2)
