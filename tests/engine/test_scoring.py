"""Label scores equal brute force by plain Transformers: every word joined to the prompt and run alone."""

from __future__ import annotations

import threading

import pytest
import torch

from engine.reference import (
    assert_greedy,
    learned_prefix,
    make_request,
    random_ids,
    reference_logits,
    static_prefix,
    tokens_of,
)
from engine.test_engine import manual_engine, run_until_idle
from foreword.core import KVPrefix
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import EngineError, ModelMismatch, PromptTooLong, RequestError
from foreword.text.label_scorers import WordScorer
from foreword.text.prompt import Prompt
from foreword.text.verbalizer import WordTrie
from tiny_models import CAUSAL, tiny_model

# One token; several; two labels that begin alike; a word that is the beginning of another; two words of one label.
WORDS = [(0, (7,)), (1, (7, 9)), (1, (30, 31, 32)), (2, (30, 31)), (2, (8,)), (3, (30, 40))]
TRIE = WordScorer(WordTrie.build(WORDS, 4))
PLAIN = WordScorer(WordTrie.build([(0, (7,)), (1, (8,))], 2))


def brute_force(family: str, prompt: Prompt, words=WORDS) -> torch.Tensor:
    request = Request(prompt.token_ids, prompt.prefix, prompt.prefix_length)
    scores: dict[int, list[torch.Tensor]] = {}
    for label, word in words:
        rows = reference_logits(family, request, word[:-1])[-len(word) :].double().log_softmax(-1)
        scores.setdefault(label, []).append(rows.gather(1, torch.tensor(word)[:, None]).sum())
    return torch.stack([torch.stack(scores[label]).logsumexp(0) for label in sorted(scores)]).float()


def prompts(family: str) -> list[Prompt]:
    uses: list[tuple[KVPrefix | None, int]] = [
        (None, 0),
        (learned_prefix(family, 3), 3),
        (static_prefix(family, 21), 21),
        (learned_prefix(family, 21, 1), 21),
        (static_prefix(family, 21), 5),
        (learned_prefix(family, 3), 3),
    ]
    found = []
    for index, (prefix, used) in enumerate(uses):
        found += [Prompt(random_ids(length, index), prefix, used) for length in (1, 13, 6)]
    return found


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("step_tokens", [20, 512])
def test_scores_equal_brute_force(family, step_tokens):
    asked = prompts(family)
    with Engine(tiny_model(family), cache_bytes=1 << 20, step_tokens=step_tokens) as engine:
        found = engine.score(asked, TRIE)
    expected = torch.stack([brute_force(family, prompt) for prompt in asked])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert found.dtype == torch.float32


def test_no_prompts_have_no_scores():
    with Engine(tiny_model("llama"), cache_bytes=1 << 20) as engine:
        assert engine.score([], TRIE).shape == (0, 4)


def test_scoring_beside_generation_from_many_threads():
    asked = prompts("llama")
    expected = torch.stack([brute_force("llama", prompt) for prompt in asked])
    found: dict[int, torch.Tensor] = {}
    with Engine(tiny_model("llama"), cache_bytes=4 << 20, step_tokens=30) as engine:
        streams = [engine.submit(make_request(5, seed, max_tokens=30)) for seed in range(4)]

        def score(index: int) -> None:
            found[index] = engine.score(asked[index:], TRIE)

        threads = [threading.Thread(target=score, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for stream in streams:
            assert_greedy("llama", stream.request, tokens_of(stream))
        for thread in threads:
            thread.join(60)
        assert engine.statistics()["scored"] == sum(len(asked) - index for index in range(8))
    for index in range(8):
        torch.testing.assert_close(found[index], expected[index:], atol=1e-4, rtol=0)


def test_generation_and_scoring_take_turns():
    """A long list of prompts does not hold up running answers: one piece a step at most."""
    engine = manual_engine("llama", step_tokens=16)
    stream = engine.submit(make_request(3, max_tokens=6))
    scoring = threading.Thread(target=engine.score, args=([Prompt(random_ids(14, 0), None, 0)] * 6, PLAIN))
    scoring.start()
    while not engine._jobs:
        pass
    for done in range(1, 7):
        engine.step()
        found = engine.statistics()
        assert (found["scored"] <= done, found["tokens_generated"]) == (True, done)
    run_until_idle(engine)
    scoring.join(10)
    assert not scoring.is_alive()
    assert len(tokens_of(stream)) == 6


def test_the_longest_word_must_fit_the_context():
    limit = 20
    with Engine(tiny_model("llama"), cache_bytes=1 << 20, max_model_len=limit) as engine:
        fits = Prompt(random_ids(limit - 3 - 5, 0), learned_prefix("llama", 5), 5)
        assert engine.score([fits], TRIE).shape == (1, 4)
        over = Prompt(random_ids(limit - 3 - 5 + 1, 0), learned_prefix("llama", 5), 5)
        with pytest.raises(PromptTooLong, match=r"18 tokens.*context of 20.*word of 3 tokens"):
            engine.score([fits, over], TRIE)
        assert engine.score([over], PLAIN).shape == (1, 2)


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        (Prompt((), None, 0), RequestError),
        (Prompt((5, 300), None, 0), RequestError),
        (Prompt((5,), None, 3), RequestError),
        (Prompt((5,), learned_prefix("gpt2", 3), 3), ModelMismatch),
    ],
)
def test_prompts_that_can_never_be_scored(prompt, error):
    with Engine(tiny_model("llama"), cache_bytes=1 << 20) as engine:
        with pytest.raises(error):
            engine.score([Prompt((5,), None, 0), prompt], PLAIN)
        assert engine.score([Prompt((5,), None, 0)], PLAIN).isfinite().all()


def test_a_forward_that_fails_is_an_error_for_its_caller_only(monkeypatch):
    lm = tiny_model("llama")
    with Engine(lm, cache_bytes=1 << 20) as engine:
        with monkeypatch.context() as broken:
            broken.setattr(WordScorer, "scores", lambda choice, outputs: 1 / 0)
            with pytest.raises(EngineError, match="could not do this: ZeroDivisionError"):
                engine.score(prompts("llama"), TRIE)
        found = engine.score(prompts("llama")[:1], TRIE)
    torch.testing.assert_close(found[0], brute_force("llama", prompts("llama")[0]), atol=1e-4, rtol=0)


def test_closing_while_it_scores():
    engine = manual_engine("llama")
    raised: list[Exception] = []

    def score() -> None:
        try:
            engine.score(prompts("llama"), TRIE)
        except EngineError as error:
            raised.append(error)

    thread = threading.Thread(target=score)
    thread.start()
    while not engine._jobs:
        pass
    engine.close()
    thread.join(10)
    assert len(raised) == 1
    with pytest.raises(EngineError, match="closed"):
        engine.score(prompts("llama"), TRIE)
