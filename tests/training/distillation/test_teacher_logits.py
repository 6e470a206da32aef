"""The teacher's logits on disk are those of a fresh forward over text and conversation."""

from __future__ import annotations

import torch

from foreword.core import Batch, Front
from foreword.training.distillation.teacher_logits import TeacherLogits, teacher_logits
from training.distillation.small_document import TEXT, chat_model, dialog, document


def test_stored_logits_are_those_of_a_fresh_forward_over_the_joined_text(tmp_path):
    lm = chat_model()
    conversations = [
        dialog(lm, "a longer question?", " yes"),
        dialog(lm, "q", " it ships"),
        dialog(lm, "why", " because."),
    ]
    teacher_logits(lm, document(), conversations, k=12).save(tmp_path / "beliefs.safetensors")
    stored = TeacherLogits.load(tmp_path / "beliefs.safetensors")
    text = tuple(lm.tokenizer.encode(TEXT, add_special_tokens=False))
    for number, each in enumerate(conversations):
        joined = text + each.prompt + each.answer
        last = len(text) + len(each.prompt) - 1
        rows = torch.arange(last, last + len(each.answer))
        with torch.no_grad():
            fresh = lm.logits(Batch.from_rows(Front(), [joined]), rows).log_softmax(-1)
        ids, logprobs = stored.of_conversation(number)
        best = fresh.topk(12)
        assert torch.equal(ids.long(), best.indices)
        torch.testing.assert_close(logprobs, best.values, atol=2e-5, rtol=1e-5)


def test_a_conversation_is_read_where_its_answer_is_predicted():
    lm = chat_model()
    encoded = dialog(lm, "abc", "xy").encoded()
    assert lm.tokenizer.decode(encoded.token_ids) == "abcx"
    assert encoded.output_indices == (2, 3)
