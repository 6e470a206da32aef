"""A text whole and in chunks, and who cannot have one distilled."""

from __future__ import annotations

import pytest

from foreword.errors import SettingError, UnsupportedModel, UsageError
from foreword.text.task_prompts import static_token_ids
from foreword.training.distillation.document import Document, cut
from tiny_encoder_decoders import tiny_encoder_decoder
from tiny_models import tiny_model
from training.distillation.small import TEXT, roomy


def test_a_text_that_fits_is_one_chunk_with_the_prefix_of_its_static_task():
    lm = roomy()
    for kind in ("system", "prompt"):
        found = Document.read(lm, kind, TEXT)
        assert len(found.chunks) == 1
        assert found.tokens == len(static_token_ids(lm.tokenizer, kind, TEXT))
        assert found.chunks[0].kind == kind


def test_a_text_longer_than_the_context_is_cut_into_chunks_that_leave_room():
    lm = roomy(context=1100)
    long = "\n\n".join(f"Rule {number}: {TEXT}" for number in range(40))
    found = Document.read(lm, "system", long)
    assert len(found.chunks) > 2
    assert "".join(chunk.text or "" for chunk in found.chunks) == long
    assert all(chunk.prefix.length <= 550 for chunk in found.chunks)
    # Where it can, it is cut between paragraphs.
    assert all((chunk.text or "").startswith("Rule") for chunk in found.chunks)


@pytest.mark.parametrize("text", ["a" * 99, "one two three four " * 6, "第一句。第二句。第三句。" * 5, "x"])
@pytest.mark.parametrize("limit", [1, 7, 40])
def test_parts_are_the_whole_and_none_is_too_long(text, limit):
    parts = cut(text, len, limit)
    assert "".join(parts) == text
    assert all(0 < len(part) <= limit for part in parts)


def test_chunks_that_leave_no_room_are_refused():
    with pytest.raises(SettingError, match=r"--chunk 900 leaves no room .* context of roomy-llama, 1000; take 488"):
        Document.read(roomy(context=1000), "prompt", TEXT * 20, chunk=900)


def test_refused_by_name():
    with pytest.raises(UnsupportedModel, match="tiny-bert is an encoder, and a text is distilled"):
        Document.read(tiny_model("bert"), "prompt", TEXT)
    with pytest.raises(UnsupportedModel, match="is an encoder-decoder, and a text is distilled"):
        Document.read(tiny_encoder_decoder("t5"), "prompt", TEXT)
    with pytest.raises(UsageError, match="the text of a static task is empty"):
        Document.read(roomy(), "prompt", "")
