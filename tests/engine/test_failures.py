"""A step that fails takes its own requests with it, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from engine.reference import assert_greedy, learned_prefix, make_request, text_of, tokens_of
from engine.test_engine import manual_engine, run_until_idle
from foreword.core import KVPrefix
from foreword.engine.engine import Engine
from foreword.errors import EngineError
from foreword.text.detokenize import Detokenizer
from tiny_models import tiny_model


def broken_prefix(value: float) -> KVPrefix:
    known = learned_prefix("llama", 4)
    # One position: PyTorch's CPU kernel takes keys that are NaN throughout for masked ones and answers with zeros.
    at = torch.tensor([2])
    keys = tuple(key.index_fill(1, at, value) for key in known.keys)
    return KVPrefix(known.model, keys, known.values, known.offset)


def test_a_failing_step_ends_its_requests_only(monkeypatch):
    engine = manual_engine("llama", max_batch=2)
    failing = [engine.submit(make_request(3, seed, max_tokens=20)) for seed in range(2)]
    waiting = engine.submit(make_request(3, 2, learned_prefix("llama", 5)))
    engine.step()
    with monkeypatch.context() as broken:
        broken.setattr(engine._runner, "run", lambda plan: 1 / 0)
        assert engine.step()
    engine.cache.check()
    for stream in failing:
        chunks = list(stream)
        assert (chunks[-1].finish_reason, len(tokens_of(chunks))) == ("error", 1)
        assert "ZeroDivisionError" in str(chunks[-1].error)
    later = engine.submit(make_request(5, 3))
    run_until_idle(engine)
    for stream in (waiting, later):
        answer = tokens_of(stream)
        assert len(answer) == 8
        assert_greedy("llama", stream.request, answer)
    assert engine.statistics()["failed"] == 2
    assert engine.cache.num_free_pages == engine.cache.num_pages


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
