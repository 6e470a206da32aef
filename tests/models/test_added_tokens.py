"""Tokens that were added to a tokenizer whose model was not resized: refused by their word."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from transformers import AddedToken

from foreword.cli.doctor.model import check_model
from foreword.core import Constraint, SamplingParams, Task
from foreword.core.token_rows import tokens_without_row
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import UsageError
from foreword.evaluation.predict import label_scorer
from foreword.models import LanguageModel
from foreword.models.ways import wrap_model
from foreword.prompts import init
from foreword.prompts.lower import lower_tokens
from foreword.prompts.static import static_task
from foreword.text import task_prompts
from foreword.text.label_scorers import WordScorer
from foreword.text.verbalizer import Verbalizer
from foreword.training.train import train
from tiny_models import tiny_model
from training.small_data import examples, recipe, write_jsonl

SENTENCE = "token '<drug>' (300) has no row in the model's embedding of 300; resize the model's embeddings"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    base = tiny_model("llama")
    tokenizer = copy.deepcopy(base.tokenizer)
    fill = 300 - len(tokenizer)
    tokenizer.add_tokens([AddedToken(f"<{n}>") for n in range(fill)] + ["<drug>", "</drug>"])
    return wrap_model(base.model, tokenizer, name="tiny-added")


@pytest.mark.parametrize("method", ["p-tuning-v2", "prompt-tuning", "manual"])
@pytest.mark.parametrize("held", [False, True])
def test_a_row_is_refused_before_anything_is_learned(lm, method, held, tmp_path):
    rows = [*examples(6, 1), {"text": "a <drug>b</drug>", "label": "y"}]
    file = write_jsonl(tmp_path / "drug.jsonl", rows)
    settings = {"length": None, "lr": None, "max_steps": None, "init": "auto"} if method == "manual" else {}
    with pytest.raises(UsageError, match=re.escape(f"{file} line 7: {SENTENCE}")):
        train(lm, recipe(tmp_path, method=method, **{"eval" if held else "data": file}, **settings))
    assert not (tmp_path / "run").exists()


def test_answers_words_and_initial_texts_are_refused(lm, tmp_path):
    rows = [{"text": "a", "label": "y"}, {"text": "b", "label": "n <drug>"}]
    file = write_jsonl(tmp_path / "drug.jsonl", rows)
    with pytest.raises(UsageError, match=re.escape(f"drug.jsonl line 2: {SENTENCE}")):
        train(lm, recipe(tmp_path, data=file, eval=None, template="{text}={target:label}"))
    with pytest.raises(UsageError, match=re.escape(f"word ' n <drug>' of label 'n <drug>': {SENTENCE}")):
        train(lm, recipe(tmp_path, data=file, eval=None))
    with pytest.raises(UsageError, match=re.escape(SENTENCE)):
        train(lm, recipe(tmp_path, init="text", init_text="<drug>"))
    drawn = init.sampled_vocabulary(lm)(500, torch.Generator().manual_seed(0)).token_ids
    assert drawn is not None
    assert max(drawn) < 300


def test_texts_in_front_and_requests_are_refused(lm):
    with pytest.raises(UsageError, match=re.escape(SENTENCE)):
        static_task(lm, "t", "prompt", "be brief about <drug>")
    prompt = task_prompts.from_text(lm.tokenizer, None, "take <drug>")
    words = Verbalizer.from_labels(["y", "n"]).build_trie(lm.tokenizer, "")
    with Engine(lm) as engine:
        for refused in (
            lambda: engine.submit(Request.from_prompt(prompt, SamplingParams(max_tokens=1))),
            lambda: engine.prefill(prompt.token_ids),
            lambda: engine.score([prompt], WordScorer(words)),
        ):
            with pytest.raises(UsageError, match=re.escape(SENTENCE)):
                refused()


def test_doctor_names_the_tokens(lm):
    assert tokens_without_row(lm.tokenizer, 300) == ["<drug>", "</drug>"]
    finding = check_model(lm)[-1]
    assert (finding.what, finding.state) == ("tokens", "note")
    assert "'<drug>', '</drug>' have no row in the embedding of 300" in finding.found
    assert [each.what for each in check_model(tiny_model("llama"))] == ["tiny-llama", "proof", "prefixes", "gradients"]


@pytest.fixture(scope="module")
def ending(lm) -> LanguageModel:
    """The end-of-text token and the one that opens a turn have no row either."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<end>", "additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = "{% for m in messages %}<turn>{{ m['content'] }}{% endfor %}"
    return wrap_model(lm.model, tokenizer, name="tiny-ending")


def test_a_model_whose_tokenizer_merely_knows_them_works(ending):
    """Sampling, stops, constraints and log-probabilities: sizes of vocabulary and embedding differ in all of them."""
    tokenizer = ending.tokenizer
    prompt = task_prompts.from_text(tokenizer, None, "take it")
    words = WordScorer(Verbalizer.from_labels(["y", "n"]).build_trie(tokenizer, ""))
    with Engine(ending) as engine:

        def text(**options) -> str:
            (chunks,) = engine.generate([Request.from_prompt(prompt, SamplingParams(max_tokens=6, **options))])
            return "".join(chunk.text for chunk in chunks)

        assert text()
        assert len(text(min_tokens=6, stop_token_ids=(tokenizer.eos_token_id,))) >= 1
        assert text(temperature=1.0, seed=1, min_tokens=2, logprobs=3)
        assert text(constraint=Constraint.regex("[ab]{3}")) in {a + b + c for a in "ab" for b in "ab" for c in "ab"}
        assert text(constraint=Constraint.choice(["<drug>", "yes"])) in ("<drug>", "yes")
        assert engine.score([prompt], words).shape == (1, 2)
        assert engine.embed([prompt]).isfinite().all()


def test_chat_templates_answers_and_words_that_use_them_are_refused(ending, tmp_path):
    turn = re.escape("token '<turn>' (303) has no row in the model's embedding of 300")
    prompt = task_prompts.from_messages(ending.tokenizer, None, [{"role": "user", "content": "hi"}])
    words = {"a": ("<drug>",), "b": ("no",)}
    task = Task("t", "p-tuning-v2", lower_tokens(ending, [1, 2]), verbalizer=words, template="{text}{mask}")
    with Engine(ending) as engine:
        with pytest.raises(UsageError, match=turn):
            engine.submit(Request.from_prompt(prompt, SamplingParams(max_tokens=1)))
        with pytest.raises(UsageError, match=re.escape(f"word '<drug>' of label 'a': {SENTENCE}")):
            label_scorer(engine, task)
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": "y"}, {"text": "b", "label": "n"}])
    end = re.escape(f"{file} line 1: token '<end>' (302) has no row")
    with pytest.raises(UsageError, match=end):
        train(ending, recipe(tmp_path, data=file, eval=None, template="{text}={target:label}"))
