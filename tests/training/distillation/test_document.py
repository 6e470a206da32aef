"""A text whole and in chunks, and models that cannot have one distilled."""

from __future__ import annotations

import pytest

from foreword.errors import SettingError, UnsupportedModel, UsageError
from foreword.text.task_prompts import static_token_ids
from foreword.training.distillation.document import Document, split_text
from tiny_encoder_decoders import tiny_encoder_decoder
from tiny_models import tiny_model
from training.distillation.small_document import TEXT, chat_model


def test_a_text_that_fits_is_one_chunk_with_the_prefix_of_its_static_task():
    lm = chat_model()
    for kind in ("system", "prompt"):
        document = Document.prefill(lm, kind, TEXT)
        assert len(document.chunks) == 1
        assert document.tokens == len(static_token_ids(lm.tokenizer, kind, TEXT))
        assert document.chunks[0].kind == kind


def test_a_text_longer_than_the_context_is_cut_into_chunks_that_leave_room():
    lm = chat_model(context=1100)
    long = "\n\n".join(f"Rule {number}: {TEXT}" for number in range(40))
    document = Document.prefill(lm, "system", long)
    assert len(document.chunks) > 2
    assert "".join(chunk.text or "" for chunk in document.chunks) == long
    assert all(chunk.prefix.length <= 550 for chunk in document.chunks)
    # Where it can, it is cut between paragraphs.
    assert all((chunk.text or "").startswith("Rule") for chunk in document.chunks)


@pytest.mark.parametrize("text", ["a" * 99, "one two three four " * 6, "第一句。第二句。第三句。" * 5, "x"])
@pytest.mark.parametrize("limit", [1, 7, 40])
def test_parts_joined_are_the_text_and_none_is_too_long(text, limit):
    parts = split_text(text, len, limit)
    assert "".join(parts) == text
    assert all(0 < len(part) <= limit for part in parts)


def test_chunks_that_leave_no_room_are_refused():
    with pytest.raises(SettingError, match=r"--chunk 900 leaves no room .* context of chat-llama, 1000; take 488"):
        Document.prefill(chat_model(context=1000), "prompt", TEXT * 20, chunk=900)


def test_unsupported_models_are_refused_by_name():
    with pytest.raises(UnsupportedModel, match="tiny-bert is an encoder, and a text is distilled"):
        Document.prefill(tiny_model("bert"), "prompt", TEXT)
    with pytest.raises(UnsupportedModel, match="is an encoder-decoder, and a text is distilled"):
        Document.prefill(tiny_encoder_decoder("t5"), "prompt", TEXT)
    with pytest.raises(UsageError, match="the text of a static task is empty"):
        Document.prefill(chat_model(), "prompt", "")
