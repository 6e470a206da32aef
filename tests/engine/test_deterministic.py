"""``deterministic``: in bfloat16 the same tokens and log-probabilities, bit by bit, alone and in any batch."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch

from foreword.core import SamplingParams, Task
from foreword.engine.engine import CHUNK, Engine
from foreword.engine.protocol import Request, TokenLogprob
from foreword.errors import UsageError
from foreword.evaluation.predict import classify
from foreword.models import LanguageModel
from foreword.models.ways import wrap_model
from foreword.prompts.lower import lower_tokens
from foreword.text.prompt import Prompt
from server.running_server import label_task, learned_prefix
from tiny_models import byte_tokenizer, tiny_model

Answer = tuple[tuple[int, ...], tuple[float, ...]]
"""Tokens, and their log-probabilities."""


@cache
def bfloat16_model() -> LanguageModel:
    model = copy.deepcopy(tiny_model("llama").model).to(torch.bfloat16)
    return wrap_model(model, byte_tokenizer(), name="tiny-bfloat16")


def engine(**options) -> Engine:
    return Engine(bfloat16_model(), **{"cache_bytes": 1 << 23, "deterministic": True, **options})


@cache
def requests() -> tuple[Request, ...]:
    """Greedy and seeded, behind no prefix, short and long ones and static ones, with equal beginnings."""
    lm, draw = bfloat16_model(), random.Random(1)
    ids = [draw.randrange(250) for _ in range(200)]
    # Longer and shorter than what is copied into pages is a matter of 256 positions, which the model has not.
    prefixes = [None, learned_prefix(lm.identity, 5), learned_prefix(lm.identity, 40), lower_tokens(lm, ids[:30])]
    found = []
    for index in range(24):
        prefix = prefixes[index % 4]
        length = draw.choice([1, 17, CHUNK - 1, CHUNK, CHUNK + 1, 100, 2 * CHUNK])
        sampling = SamplingParams(
            max_tokens=draw.choice([1, 9, 30]),
            ignore_eos=True,
            temperature=index % 3 * 0.7,
            seed=index,
            logprobs=3,
        )
        used = prefix.length if prefix is not None else 0
        found.append(Request(tuple(ids[:length]), prefix, used, sampling, group=str(index % 4)))
    return tuple(found)


def answers(engine: Engine, asked: Sequence[Request]) -> list[Answer]:
    found = []
    for chunks in engine.generate(asked):
        assert chunks[-1].finish_reason == "length", chunks[-1]
        logprobs = [each for chunk in chunks for each in chunk.logprobs]
        numbers = [
            n for each in logprobs if isinstance(each, TokenLogprob) for n in (each.logprob, *dict(each.top).values())
        ]
        found.append((tuple(token for chunk in chunks for token in chunk.token_ids), tuple(numbers)))
    return found


@cache
def alone() -> list[Answer]:
    """Every answer from an engine that did nothing else."""
    found = []
    for request in requests():
        with engine() as fresh:
            found += answers(fresh, [request])
    return found


def test_all_at_once_and_again_from_the_cache():
    with engine() as shared:
        assert answers(shared, requests()) == alone()
        assert answers(shared, requests()) == alone()
        assert shared.statistics()["tokens_reused"] >= 10 * CHUNK
        shuffled = random.Random(2).sample(range(24), 24)
        assert answers(shared, [requests()[i] for i in shuffled]) == [alone()[i] for i in shuffled]


def test_through_preemptions():
    page = 16 * sum(s.kv_heads * (s.key_dim + s.value_dim) for s in bfloat16_model().identity.layers) * 2
    with engine(cache_bytes=26 * page) as small:
        assert answers(small, requests()) == alone()
        assert small.statistics()["preempted"] > 0


def test_without_it_bfloat16_differs():
    """What the guard is for: if this fails, kernels have come to round alike, and the page should say so."""
    with engine(deterministic=False) as shared:
        assert answers(shared, requests()) != alone()


def test_a_talk_that_goes_on_does_not_reuse_its_answer():
    first = requests()[0]
    sampling = SamplingParams(max_tokens=20, ignore_eos=True, logprobs=1)
    with engine() as shared:
        ((tokens, _),) = answers(shared, [Request((*first.token_ids, *range(90)), sampling=sampling)])
        longer = Request((*first.token_ids, *range(90), *tokens, 5, 6, 7), sampling=sampling)
        later = answers(shared, [longer])
    with engine() as fresh:
        assert answers(fresh, [longer]) == later


def test_labels_and_log_probabilities_do_not_depend_on_the_batch():
    lm = bfloat16_model()
    task: Task = label_task(lm)
    rows = [{"text": "x" * n} for n in (1, 9, 40, 80)]
    prompts = [Prompt(tuple(range(n)), None, 0) for n in (3, 30, 70)]
    with engine() as shared:
        together = classify(shared, task, rows)
        assert together == [classify(shared, task, [row])[0] for row in rows]
        batch = shared.token_logprobs(prompts)
        for one, prompt in zip(batch, prompts, strict=True):
            assert np.array_equal(np.asarray(one), np.asarray(shared.token_logprobs([prompt])[0]))


def test_a_step_has_room_for_a_chunk_beside_the_others():
    with pytest.raises(UsageError, match="step_tokens 128 or more, got 100"):
        engine(step_tokens=100, start=False)
