"""A step that fails takes its own requests with it, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from engine.reference import assert_greedy, learned_prefix, make_request, text_of, tokens_of
from engine.test_engine import manual_engine, run_until_idle
from foreword.core import KVPrefix
from foreword.engine.engine import Engine
from foreword.engine.job import Job
from foreword.engine.protocol import Request
from foreword.engine.stream import ChunkStream
from foreword.engine.token_sampler import TokenSampler
from foreword.errors import EngineError
from foreword.text.detokenize import Detokenizer
from tiny_cached_models import tiny_cached_model
from tiny_encoder_decoders import tiny_encoder_decoder
from tiny_models import tiny_model


def broken_prefix(value: float) -> KVPrefix:
    known = learned_prefix("llama", 4)
    # One position: PyTorch's CPU kernel takes keys that are NaN throughout for masked ones and answers with zeros.
    at = torch.tensor([2])
    keys = tuple(key.index_fill(1, at, value) for key in known.keys)
    return KVPrefix(known.model, keys, known.values, known.offset)


def fails_for(engine: Engine, bad: set[Request], after: int = 0):
    """The engine's `run`, which raises behind the model, when all is written, if a step has a bad request in it."""
    run = engine._runner.run

    def failing(scheduled):
        logits = run(scheduled)
        sequences = [each.sequence for each in scheduled]
        if any(s.request in bad and len(s.output_token_ids) >= after for s in sequences):
            raise ZeroDivisionError("a bad request")
        return logits

    return failing


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize(
    "lm",
    [lambda: tiny_model("llama"), lambda: tiny_cached_model("falcon_h1"), lambda: tiny_encoder_decoder("t5")],
    ids=["paged", "states", "encoder-decoder"],
)
def test_a_bad_request_fails_alone(monkeypatch, lm, after):
    """The others of its steps answer as they do without it, with every seed."""
    model = lm()
    requests = [
        replace(make_request(length, length, max_tokens=9, temperature=float(length % 2), seed=length), tenant=tenant)
        for length, tenant in ((3, "a"), (19, "a"), (40, "b"), (5, ""), (18, "b"))
    ]
    with Engine(model, start=False) as engine:
        alone = [[chunk.token_ids for chunk in stream] for stream in submit_all(engine, requests[:4])]
    engine = Engine(model, start=False)
    monkeypatch.setattr(engine._runner, "run", fails_for(engine, {requests[4]}, after))
    *good, bad = [engine.submit(request) for request in requests]
    run_until_idle(engine)
    assert [[chunk.token_ids for chunk in stream] for stream in good] == alone
    *before, last = list(bad)
    assert (last.finish_reason, len(before)) == ("error", after)
    assert "ZeroDivisionError: a bad request" in str(last.error)
    assert engine.statistics()["failed"] == 1
    assert not engine.scheduler.sequences
    later = engine.submit(requests[0])
    run_until_idle(engine)
    assert [chunk.token_ids for chunk in later] == alone[0]


def submit_all(engine: Engine, requests: list[Request]) -> list[ChunkStream]:
    streams = [engine.submit(request) for request in requests]
    run_until_idle(engine)
    return streams


def test_those_that_wait_go_on_while_others_run_apart(monkeypatch):
    engine = manual_engine("llama", max_batch=8)
    bad = [make_request(3, seed, max_tokens=20) for seed in range(4)]
    monkeypatch.setattr(engine._runner, "run", fails_for(engine, set(bad), 1))
    streams = [engine.submit(request) for request in bad]
    engine.step()
    engine.step()  # fails: the four run apart from now on
    late = engine.submit(make_request(5, 9, max_tokens=4))
    run_until_idle(engine)
    assert [list(stream)[-1].finish_reason for stream in streams] == ["error"] * 4
    assert_greedy("llama", late.request, tokens_of(late))
    assert engine.cache.num_free_pages == engine.cache.num_pages


def test_a_prefix_that_the_cache_cannot_take_fails_its_request_only():
    engine = manual_engine("llama")
    known = learned_prefix("llama", 4)
    prefix = KVPrefix(known.model, known.keys, known.values, known.offset)
    good, bad = engine.submit(make_request(3)), engine.submit(make_request(3, 1, prefix))
    object.__setattr__(prefix, "keys", tuple(key[:, :, :3] for key in prefix.keys))
    late = engine.submit(make_request(3, 2, learned_prefix("llama", 5)))
    run_until_idle(engine)
    assert list(bad)[-1].finish_reason == "error"
    for stream in (good, late):
        assert_greedy("llama", stream.request, tokens_of(stream))
    assert engine.cache.num_free_pages == engine.cache.num_pages


def test_a_sampler_that_fails_fails_alone_and_no_other_samples_twice(monkeypatch):
    engine = manual_engine("llama")
    seeded = make_request(4, 1, temperature=1.0, seed=3)
    alone = tokens_of(submit_all(engine, [seeded])[0])
    bad = engine.submit(make_request(4, 2, temperature=1.0, seed=4))
    good = [engine.submit(seeded), engine.submit(make_request(9, 3))]
    sample = TokenSampler._sample
    broken = engine._new_sequences[0].sampler
    monkeypatch.setattr(TokenSampler, "_sample", lambda self, logits: 1 / (self is not broken) and sample(self, logits))
    run_until_idle(engine)
    assert "ZeroDivisionError" in str(list(bad)[-1].error)
    assert tokens_of(good[0]) == alone
    assert engine.scheduler.num_preemptions == 0


def test_a_job_whose_room_cannot_be_told_fails_alone():
    engine = manual_engine("llama")
    broken, good = Job(lambda: 1, ready=lambda: 1 // 0 > 0), Job(lambda: 2)
    engine._jobs.extend("", [broken, good])
    run_until_idle(engine)
    with pytest.raises(ZeroDivisionError):
        broken.result()
    assert good.result() == 2


def test_a_model_that_raises_inside_leaves_no_half_written_state(monkeypatch):
    """The keys of some layers were written when the step failed; the pages are used again."""
    lm = tiny_model("llama")
    engine = manual_engine("llama", pages=2)
    stream = engine.submit(make_request(9, max_tokens=9))
    with monkeypatch.context() as broken:
        broken.setattr(lm.model.model.layers[2], "forward", lambda *args, **kwargs: 1 / 0)
        engine.step()
    assert list(stream)[-1].finish_reason == "error"
    again = engine.submit(make_request(9, max_tokens=9))
    run_until_idle(engine)
    assert_greedy("llama", again.request, tokens_of(again))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_prefix_fails_only_its_own_request(value, temperature):
    engine = manual_engine("llama", pages=6)
    bad = engine.submit(make_request(3, 0, broken_prefix(value), temperature=temperature))
    good = [engine.submit(make_request(3, seed, learned_prefix("llama", 4))) for seed in range(2)]
    run_until_idle(engine)
    last = list(bad)[-1]
    assert (last.finish_reason, "no finite logits" in str(last.error)) == ("error", True)
    for stream in [*good, engine.submit(make_request(20, 5))]:
        run_until_idle(engine)
        assert_greedy("llama", stream.request, tokens_of(stream))


def test_a_tokenizer_that_fails_does_not_stop_the_engine(monkeypatch):
    engine = manual_engine("llama")
    stream = engine.submit(make_request(3, stop=("x",)))
    with monkeypatch.context() as broken:
        broken.setattr(Detokenizer, "_decode", lambda self, ids: 1 / 0)
        run_until_idle(engine)
    assert list(stream)[-1].finish_reason == "error"
    assert engine.cache.num_free_pages == engine.cache.num_pages
    again = engine.submit(make_request(3))
    run_until_idle(engine)
    assert text_of(again) or tokens_of(again)


def test_answers_finished_before_the_failure_are_kept(monkeypatch):
    engine = manual_engine("llama")
    done, failing = engine.submit(make_request(3, max_tokens=1)), engine.submit(make_request(3, 1, stop=("x",)))
    decode = Detokenizer._decode
    with monkeypatch.context() as broken:
        broken.setattr(Detokenizer, "_decode", lambda self, ids: 1 / (not self._stop) and decode(self, ids))
        run_until_idle(engine)
    assert [list(stream)[-1].finish_reason for stream in (done, failing)] == ["length", "error"]
    assert engine.cache.num_free_pages == engine.cache.num_pages


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_crash_of_the_engine_ends_every_stream_with_an_error(monkeypatch):
    engine = Engine(tiny_model("llama"), cache_bytes=1 << 20)
    monkeypatch.setattr(engine.scheduler, "schedule", lambda: 1 / 0)
    last = list(engine.submit(make_request(3)))[-1]
    assert (last.finish_reason, last.error) == ("error", "the engine broke down: ZeroDivisionError: division by zero")
    with pytest.raises(EngineError):
        engine.submit(make_request(3))
    engine.close()


def test_leaving_the_interpreter_without_closing_is_quiet():
    code = (
        "from engine.reference import make_request; from tiny_models import tiny_model;"
        "from foreword.engine.engine import Engine;"
        "stream = Engine(tiny_model('llama')).submit(make_request(3, max_tokens=200)); next(iter(stream))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (found.returncode, found.stderr) == (0, "")
