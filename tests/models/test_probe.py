"""The support probe: what it compares, what it finds out, and what it leaves to rounding."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from foreword.core import Batch
from foreword.errors import UnsupportedModel
from foreword.models import load_model, probe
from foreword.models.probe import TEXTS, Draw, compare, prove, text_ids
from foreword.models.proof import Comparison, Proof
from foreword.models.ways import wrap_model
from tiny_encoder_decoders import tiny_encoder_decoder
from tiny_models import ENCODERS, byte_tokenizer, save_tiny, tiny_model


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", *ENCODERS])
def test_a_quick_model_is_compared_on_all_pairs_of_texts(family, monkeypatch):
    monkeypatch.setattr(probe, "QUICK", float("inf"))
    proof = prove(tiny_model(family))
    assert proof.draws == len(probe.PAIRS)
    assert proof.difference < 1e-6 < 0.1 < proof.effect
    assert proof.share < 0.01


def test_a_slow_model_is_compared_once_where_that_is_clear(monkeypatch):
    monkeypatch.setattr(probe, "QUICK", 0.0)
    lm = tiny_model("llama")
    assert prove(lm).draws == 1
    monkeypatch.setattr(probe, "CLEAR", 0.0)
    assert prove(lm).draws == len(probe.PAIRS)


def test_the_median_decides():
    good, bad = Comparison(0.1, 1.0, 0.2), Comparison(0.9, 1.0, 0.2)
    assert Proof.of([good, bad, good]).share == 0.5
    assert Proof.of([bad, good, bad]).share > 1
    assert (Comparison(0.0, 0.0, 0.0).share, Comparison(0.1, 0.0, 0.0).share) == (0.0, 1.0)


class _Wrong:
    """A model whose batches are wrong in one way; alone or without a prefix it is right."""

    def __init__(self, lm, spoil):
        self._lm, self._spoil = lm, spoil

    def __getattr__(self, name):
        return getattr(self._lm, name)

    def logits(self, batch, rows):
        return self._lm.logits(self._spoil(batch), rows)


def _swapped(batch: Batch) -> Batch:
    kept = [prefix for prefix in batch.prefixes if prefix is not None]
    if len(kept) < 2:
        return batch
    order = iter(reversed(kept))
    return replace(batch, prefixes=tuple(prefix and next(order) for prefix in batch.prefixes))


def _first_alone(batch: Batch) -> Batch:
    return replace(batch, prefixes=(batch.prefixes[0], *(None for _ in batch.prefixes[1:])))


@pytest.mark.parametrize("spoil", [_swapped, _first_alone])
def test_rows_that_are_right_alone_and_wrong_together_are_found_out(spoil):
    lm = tiny_model("llama")
    with pytest.raises(UnsupportedModel, match="does not give the same logits"):
        prove(_Wrong(lm, spoil))  # type: ignore[arg-type]


def test_float16_that_overflows_is_refused_with_the_dtypes_that_do_not(tmp_path):
    """Weights scaled so that hidden states pass 65,504: every text is NaN, and arbitrary tokens would not show it."""
    folder = save_tiny("qwen3", tmp_path)
    model = copy.deepcopy(tiny_model("qwen3").model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e6)
    model.save_pretrained(folder)
    for dtype in ("float32", "bfloat16"):
        assert load_model(str(folder), dtype=dtype).proof is not None
    with pytest.raises(UnsupportedModel, match=r"NaN or infinity on ordinary text in float16: .* use --dtype bfloat16"):
        load_model(str(folder), dtype="float16")


def test_a_broken_weight_is_not_called_a_matter_of_float16(tmp_path):
    model = copy.deepcopy(tiny_model("llama").model)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(UnsupportedModel, match="NaN or infinity on ordinary text in float32: its weights are damaged"):
        wrap_model(model, byte_tokenizer(), name="broken")


def test_a_prefix_that_alone_gives_nan_is_refused():
    reference = torch.randn(4, 9)
    with pytest.raises(UnsupportedModel, match="behind a prefix the model gives NaN"):
        compare(torch.full((4, 9), float("nan")), reference, reference)


def test_masked_words_hide_nothing():
    """Some models give words that they never write the lowest number of their dtype, whose square is infinity."""
    lowest = torch.finfo(torch.float32).min
    reference, found = torch.randn(4, 9), torch.randn(4, 9)
    for logits in (reference, found):
        logits[:, 3] = lowest
    result = compare(found, torch.randn(4, 9).index_fill(1, torch.tensor([3]), lowest), reference)
    assert result.share > 1


def test_texts_are_the_tokenizers_own_or_else_ordinary_words():
    tokenizer = byte_tokenizer()
    assert text_ids(tokenizer, 300, TEXTS[2], 18) == tokenizer(TEXTS[2])["input_ids"][:18]
    for rows in (90, 300):  # 90: most bytes of the text have no row
        ids = text_ids(tokenizer if rows == 90 else _Silent(), rows, TEXTS[2], 18)
        assert len(ids) == 18
        assert max(ids) < rows
        assert len(set(ids)) > 9
        assert not {256, 257} & set(ids)


class _Silent:
    """A tokenizer that cannot write the text."""

    all_special_ids = (256, 257)

    def __call__(self, text):
        return {"input_ids": []}


def test_a_draw_has_rows_of_different_lengths_behind_two_fronts_and_none():
    draw = Draw.of(range(18), range(100, 118))
    assert len({len(row) for row in draw.rows}) == 3
    assert len({len(front) for front in draw.fronts}) == 3
    assert () in draw.fronts


def test_encoder_decoders_speak_their_language_too(monkeypatch):
    lm = tiny_encoder_decoder("t5")
    assert lm.proof is not None
    assert lm.proof.draws == len(probe.PAIRS)
    broken = copy.deepcopy(lm.model)
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = float("inf")
    with pytest.raises(UnsupportedModel, match="NaN or infinity on ordinary text"):
        wrap_model(broken, byte_tokenizer(), name="broken")


def test_a_model_that_reads_in_both_directions_is_no_causal_one():
    lm = replace(tiny_model("bert"), causal=True)
    with pytest.raises(UnsupportedModel, match="reads a text in both directions"):
        prove(lm)
