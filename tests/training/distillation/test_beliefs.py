"""What the teacher expects: what is kept on disk is what a fresh forward gives."""

from __future__ import annotations

import torch

from foreword.core import Batch, Front
from foreword.training.distillation.teacher_logits import TeacherLogits, read, teacher_logits
from training.distillation.small import TEXT, document, roomy, talk


def test_kept_logits_are_those_of_a_fresh_forward_over_the_joined_text(tmp_path):
    lm = roomy()
    talks = [talk(lm, "a longer question?", " yes"), talk(lm, "q", " it ships"), talk(lm, "why", " because.")]
    teacher_logits(lm, document(), talks, top=12).save(tmp_path / "beliefs.safetensors")
    kept = TeacherLogits.load(tmp_path / "beliefs.safetensors")
    text = tuple(lm.tokenizer.encode(TEXT, add_special_tokens=False))
    for number, each in enumerate(talks):
        joined = text + each.prompt + each.answer
        last = len(text) + len(each.prompt) - 1
        rows = torch.arange(last, last + len(each.answer))
        with torch.no_grad():
            fresh = lm.logits(Batch.from_rows(Front(), [joined]), rows).log_softmax(-1)
        ids, logprobs = kept.of(number)
        best = fresh.topk(12)
        assert torch.equal(ids.long(), best.indices)
        torch.testing.assert_close(logprobs, best.values, atol=2e-5, rtol=1e-5)


def test_a_conversation_is_read_where_its_answer_is_predicted():
    lm = roomy()
    question = read(talk(lm, "abc", "xy"))
    assert lm.tokenizer.decode(question.token_ids) == "abcx"
    assert question.output_indices == (2, 3)
