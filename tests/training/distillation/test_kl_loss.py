"""The loss: its gradients, what it is over the whole vocabulary, and where almost nothing is left."""

from __future__ import annotations

import pytest
import torch

from foreword.core import Front
from foreword.prompts.prefix import flatten_prefix, unflatten_prefix
from foreword.training.distillation.document import Document
from foreword.training.distillation.kl_loss import KLDistillationLoss, distillation_examples, kl_divergence
from foreword.training.distillation.teacher_logits import teacher_logits
from tiny_models import double
from training.distillation.small_document import TEXT, dialog


def teacher_top_k(places: int, vocabulary: int, k: int, seed: int = 0):
    """A teacher's logits, and its top-k token ids and log-probabilities."""
    logits = 3 * torch.randn(places, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    best = logits.log_softmax(-1).topk(k)
    return logits, best.indices, best.values


def full_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    expected = teacher.softmax(-1)
    return (expected * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1)


@pytest.mark.parametrize("top", [1, 5, 11])
def test_gradients(top):
    _, ids, logprobs = teacher_top_k(4, 11, top)
    student = torch.randn(4, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda logits: kl_divergence(logits, ids, logprobs), student)


def test_with_all_tokens_it_is_the_kl_divergence_and_with_top_k_never_more():
    teacher, ids, logprobs = teacher_top_k(6, 20, 20)
    student = torch.randn(6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    exact = full_kl(teacher, student)
    torch.testing.assert_close(kl_divergence(student, ids, logprobs), exact)
    for top in (1, 4, 12):
        some = kl_divergence(student, ids[:, :top], logprobs[:, :top])
        assert (some <= exact + 1e-12).all()
        assert (some > 0).all()


def test_the_teacher_itself_has_no_divergence_and_the_rest_counts():
    teacher, ids, logprobs = teacher_top_k(5, 30, 4)
    torch.testing.assert_close(kl_divergence(teacher, ids, logprobs), torch.zeros(5, dtype=torch.float64))
    # The same proportions among the known tokens, and nothing left for all others.
    greedy = teacher.scatter(1, ids, teacher.gather(1, ids) + 9)
    assert (kl_divergence(greedy, ids, logprobs) > 0.1).all()


def test_a_certain_teacher_gives_finite_loss_and_gradients():
    """Where one token has all the probability that float32 can tell, nothing is left for the others."""
    logits = torch.full((2, 50), -40.0)
    logits[:, 7] = 40.0
    student = torch.zeros(2, 50, requires_grad=True)
    best = logits.log_softmax(-1).topk(3)
    loss = kl_divergence(student, best.indices, best.values).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    reverse = kl_divergence(logits, torch.tensor([[1, 2, 3]] * 2), torch.full((2, 3), 1 / 3).log())
    assert torch.isfinite(reverse).all()


def test_gradients_of_the_prefix():
    """Through the model, in float64, to the keys and values that are learned."""
    lm = double("llama")
    conversations = [dialog(lm, "cost?", " 9"), dialog(lm, "ships", " on Mo")]
    text = Document.prefill(lm, "prompt", TEXT)
    examples = distillation_examples(conversations, teacher_logits(lm, text, conversations, k=9))
    rows = flatten_prefix(text.chunks[0].prefix)[:3]
    some = rows[:, ::37].clone().requires_grad_()

    def loss(values):
        changed = rows.clone()
        changed[:, ::37] = values
        return KLDistillationLoss().total(lm, Front(unflatten_prefix(changed, lm.identity, 3, "prefix")), examples)

    assert torch.autograd.gradcheck(loss, some)
