"""Figures of generated texts, against values worked out by hand and against the libraries themselves."""

from __future__ import annotations

import sys

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from foreword.errors import UsageError
from foreword.evaluation.metrics import text_metrics
from foreword.evaluation.text_metrics import bleu, chrf, exact_match, rouge_l, token_f1, unavailable_metrics
from foreword.evaluation.words import answer_words, mostly_cjk, plain_words

SAID = ["the cat sat on the mat today", "a dog runs in the park"]
RIGHT = [["the cat is on the mat", "there is a cat on the mat"], ["a dog runs in the green park"]]


def test_exact_match_of_several_references():
    assert exact_match([" yes\n", "No", "x"], [["no", "yes"], ["no"], ["y", "z"]]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("said", "right", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("in the Eiffel Tower", "Eiffel Tower, Paris", 2 / 3),
        ("well, well", "well", 2 / 3),
        ("", "the", 1.0),
        ("", "x", 0.0),
        ("3.5 million", "35 million", 1.0),  # as SQuAD has it: punctuation goes without a trace
        ("北京大学", "北京", 2 / 3),
        ("北京。", "北京", 1.0),
        ("在 Paris 市", "Paris市", 4 / 5),
    ],
)
def test_token_f1(said, right, f1):
    assert token_f1([said], [[right]]) == pytest.approx(f1)


def test_the_best_reference_counts():
    assert token_f1(["a red car"], [["blue bus", "red car"]]) == 1.0
    assert rouge_l(["a red car"], [["blue bus", "a red car"]]) == 1.0


def test_bleu_and_chrf_are_those_of_sacrebleu():
    # Streams as sacrebleu wants them: all first references, all second ones.
    streams = [[RIGHT[0][0], RIGHT[1][0]], [RIGHT[0][1], None]]
    assert bleu(SAID, RIGHT) == pytest.approx(sacrebleu.corpus_bleu(SAID, streams, force=True).score)
    assert chrf(SAID, RIGHT) == pytest.approx(sacrebleu.corpus_chrf(SAID, streams).score)
    assert bleu(SAID, RIGHT) != pytest.approx(bleu(SAID, [texts[:1] for texts in RIGHT]))


def test_bleu_of_chinese_is_by_characters():
    said, right = ["这家酒店的服务很好"], [["这家酒店的服务非常好"]]
    assert bleu(said, right) == pytest.approx(sacrebleu.corpus_bleu(said, [right[0]], tokenize="zh").score)
    assert bleu(said, right) > 40


def test_rouge_l_is_that_of_rouge_score():
    scorer = RougeScorer(["rougeL"])
    best = [max(scorer.score(r, s)["rougeL"].fmeasure for r in texts) for s, texts in zip(SAID, RIGHT, strict=True)]
    assert rouge_l(SAID, RIGHT) == pytest.approx(sum(best) / 2)


def test_rouge_l_sees_other_scripts():
    # Longest common subsequence 3 of 4 and 3 characters.
    assert rouge_l(["我很喜欢"], [["我喜欢"]]) == pytest.approx(2 * 3 / 7)
    assert rouge_l(["Грязный номер"], [["грязный номер!"]]) == 1.0


@given(st.text(alphabet="abcAB 019.,-!'\n", max_size=30), st.text(alphabet="abcAB 019.,-!'\n", max_size=30))
def test_words_of_english_are_cut_as_rouge_score_cuts_them(said, right):
    expected = RougeScorer(["rougeL"]).score(right, said)["rougeL"].fmeasure
    assert rouge_l([said], [[right]]) == pytest.approx(expected)


@given(st.text(max_size=40))
def test_a_text_is_its_own_best_reference(text):
    assert token_f1([text], [[text, "other"]]) == exact_match([text], [["other", text]]) == 1.0


def test_words():
    assert answer_words("The  U.S. don't, a “test”") == ["us", "dont", "test"]
    assert answer_words("あの本、3冊") == ["あ", "の", "本", "3", "冊"]
    assert plain_words("don't stop_now 2x") == ["don", "t", "stop", "now", "2x"]
    assert mostly_cjk(["你好 abc", "世界"])
    assert not mostly_cjk(["你好 abcd", ""])
    assert not mostly_cjk([""])


def test_without_the_extra_two_figures_are_left_and_the_others_named(monkeypatch):
    for module in ("sacrebleu", "rouge_score"):
        monkeypatch.setitem(sys.modules, module, None)
    assert unavailable_metrics() == ("bleu", "chrf", "rouge_l")
    assert text_metrics(["a"], [["a"]]) == {"exact_match": 1.0, "token_f1": 1.0}
    for score in (bleu, chrf, rouge_l):
        with pytest.raises(UsageError, match=r"needs the package \w+; pip install 'foreword\[eval\]'\.$"):
            score(["a"], [["a"]])
