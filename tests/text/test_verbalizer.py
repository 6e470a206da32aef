"""Verbalizers, the token trie of their words, and the scores of labels."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foreword.errors import TemplateError, VerbalizerError
from foreword.text import seam
from foreword.text.verbalizer import Verbalizer, WordTrie

TREE = [(0, [7]), (1, [7, 8]), (1, [9]), (2, [7, 8, 5]), (0, [4, 4])]


def test_parse_text_mapping_and_file(tmp_path: Path):
    text = '{"positive": " great", "negative": [" bad", " awful"]}'
    path = tmp_path / "labels.json"
    path.write_text(text, encoding="utf-8")
    expected = {"positive": (" great",), "negative": (" bad", " awful")}
    for source in (text, json.loads(text), str(path)):
        parsed = Verbalizer.parse(source)
        assert parsed.words == expected
        assert parsed.labels == ("positive", "negative")


def test_from_labels():
    assert Verbalizer.from_labels(["b", "a"]).words == {"b": (" b",), "a": (" a",)}


def test_index_with_near_names():
    verbalizer = Verbalizer.from_labels(["positive", "negative"])
    assert verbalizer.index("negative") == 1
    with pytest.raises(VerbalizerError) as caught:
        verbalizer.index("postive", "train.jsonl line 3")
    assert str(caught.value) == (
        "train.jsonl line 3: label 'postive' is not in the verbalizer (labels: positive, negative); did you "
        "mean 'positive'?"
    )
    with pytest.raises(VerbalizerError, match="add it to the verbalizer, or correct the row"):
        verbalizer.index("42")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ('{"a": "x",\n "b" 3}', "is not JSON (Expecting ':' delimiter, line 2 column 6)"),
        ('["a", "b"]', "is an object of labels and words; write it as"),
        ('{"a": "x", "b": []}', "label 'b' has no words; give it at least one"),
        ('{"a": "x", "b": ""}', "label 'b' has an empty word; give it at least one character"),
        ('{"a": "x", "b": [1]}', "label 'b' has 1 for a word; words are strings, so put it in quotes"),
        ('{"a": "x", "b": 1}', "label 'b' has 1 for words; write a string or a list of strings"),
        ('{"a": "x"}', "needs at least 2 labels, got 1; add the others"),
        ('{"a": "x", "b": ["y", "x"]}', "'x' stands for both 'a' and 'b'; give it to one label only"),
        ('{"a": "x", "a": "y", "b": "z"}', "key 'a' stands twice; write it as"),
        ("nowhere.json", "neither JSON text nor a readable file (No such file or directory); write it as"),
        ("null\0", "neither JSON text nor a readable file"),
    ],
)
def test_parse_errors(source: str, problem: str):
    with pytest.raises(VerbalizerError, match=re.escape(problem)):
        Verbalizer.parse(source)


def test_labels_given_twice():
    with pytest.raises(VerbalizerError, match="label 'a' is given twice; name every label once"):
        Verbalizer.from_labels(["a", "b", "a"])


def test_labels_that_share_their_first_token(byte_level):
    trie = Verbalizer.parse({"one": " great!", "two": " great?"}).build_trie(byte_level, ":")
    assert trie.num_labels == 2
    assert trie.parents[0] is None
    first = {path[0] for _, path in trie.words}
    assert first == {0}
    assert trie.inner_nodes == (0,)
    assert len(trie.tokens) == 3


def test_a_word_that_is_the_beginning_of_another(byte_level):
    trie = Verbalizer.parse({"short": " great", "long": " great film"}).build_trie(byte_level, "\nLabel:")
    (_, short), (_, long) = trie.words
    assert short == long[: len(short)]
    assert set(short) <= set(trie.inner_nodes)


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 3), min_size=1, max_size=4)), min_size=1))
def test_trie_holds_every_word(words: list[tuple[int, list[int]]]):
    trie = WordTrie.build(words, 3)
    assert [(label, [trie.tokens[node] for node in path]) for label, path in trie.words] == words
    for _, path in trie.words:
        assert [trie.parents[node] for node in path] == [None, *path[:-1]]
    assert all(parent is None or parent < node for node, parent in enumerate(trie.parents))
    assert trie.inner_nodes == tuple(n for n in range(len(trie.tokens)) if n in trie.parents)


def test_tokens_are_those_of_the_joined_text(tokenizer):
    verbalizer = Verbalizer.from_labels(["positive", "negative", "awful"])
    trie = verbalizer.build_trie(tokenizer, "\nLabel:")
    for (label, path), words in zip(trie.words, verbalizer.words.values(), strict=True):
        joined = seam.encode(tokenizer, "\nLabel:" + words[0], bos=False)
        tokens = [trie.tokens[node] for node in path]
        assert joined[-len(tokens) :] == tokens
        assert verbalizer.labels[label] == words[0].strip()


def test_encode_refuses_labels_with_the_same_tokens(wordpiece):
    verbalizer = Verbalizer.parse({"up": " Great", "down": " great"})
    with pytest.raises(VerbalizerError, match=r"' great' of label 'down' has the same tokens.*choose another"):
        verbalizer.build_trie(wordpiece, ":")


def test_two_spellings_under_one_label_count_once(wordpiece):
    trie = Verbalizer.parse({"up": [" Great", " great"], "down": " bad"}).build_trie(wordpiece, ":")
    assert [label for label, _ in trie.words] == [0, 1]


def test_encode_refuses_a_word_without_tokens(wordpiece):
    with pytest.raises(VerbalizerError, match="word ' ' of label 'a' has no tokens; choose another word"):
        Verbalizer.parse({"a": " ", "b": "bad"}).build_trie(wordpiece, ":")


def test_encode_refuses_a_merge_with_the_template(byte_level):
    with pytest.raises(TemplateError, match="move the space"):
        Verbalizer.parse({"a": "great", "b": "bad"}).build_trie(byte_level, "Label: ")


def brute_force(trie: WordTrie, row: list[float]) -> list[float]:
    scores: list[list[float]] = [[] for _ in range(trie.num_labels)]
    for label, path in trie.words:
        scores[label].append(math.fsum(row[node] for node in path))
    return [math.log(math.fsum(math.exp(score) for score in words)) for words in scores]


def test_label_scores_are_the_sums():
    trie = WordTrie.build(TREE, 3)
    logprobs = -torch.rand(2, 5, len(trie.tokens), generator=torch.manual_seed(0), dtype=torch.float64) * 20
    scores = trie.label_scores(logprobs)
    assert scores.shape == (2, 5, 3)
    expected = [[brute_force(trie, row) for row in rows] for rows in logprobs.tolist()]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_label_scores_have_gradients():
    trie = WordTrie.build(TREE, 3)
    logprobs = -torch.rand(4, len(trie.tokens), generator=torch.manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(trie.label_scores, (logprobs.requires_grad_(),))


def test_label_scores_are_stable():
    trie = WordTrie.build(TREE, 3)
    scores = trie.label_scores(torch.full((len(trie.tokens),), -500.0))
    torch.testing.assert_close(scores, torch.tensor([-500.0, -500.0, -1500.0]))
    impossible = torch.full((len(trie.tokens),), -1.0)
    impossible[trie.words[2][1][0]] = -torch.inf
    assert not trie.label_scores(impossible).isnan().any()
