"""Logits of every step against plain Transformers: finer than tokens, which hide a small mistake."""

from __future__ import annotations

import pytest
import torch

from engine.reference import TOLERANCE, reference_logits, tokens_of
from engine.test_engine import manual_engine, prefix_uses, random_ids, run_until_idle
from foreword.core import SamplingParams
from foreword.engine.protocol import Request
from tiny_models import CAUSAL


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("step_tokens", [7, 200])
def test_logits_of_prompt_chunks_and_answers(family, step_tokens, monkeypatch):
    engine = manual_engine(family, step_tokens=step_tokens)
    seen: dict[int, list[torch.Tensor]] = {}
    forward = engine._runner.run

    def recorded(step):
        found = forward(step)
        sampling = [scheduled.sequence for scheduled in step if scheduled.needs_logits]
        for sequence, row in zip(sampling, found, strict=True):
            seen.setdefault(id(sequence.request), []).append(row)
        return found

    monkeypatch.setattr(engine._runner, "run", recorded)
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    requests = [
        Request(random_ids(length, length), prefix, used, params)
        for prefix, used in prefix_uses(family)
        for length in (2, 23)
    ]
    streams = [engine.submit(request) for request in requests]
    run_until_idle(engine)
    for stream in streams:
        found = torch.stack(seen[id(stream.request)])
        expected = reference_logits(family, stream.request, tokens_of(stream)[:-1])[-5:]
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_contexts_of_very_different_lengths_run_in_groups():
    """Short answers are not padded to a long one, and still get their own tokens."""
    engine = manual_engine("gpt_neox", step_tokens=200)
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    streams = [engine.submit(Request(random_ids(length, length), None, 0, params)) for length in (1, 3, 70, 150, 180)]
    run_until_idle(engine)
    for stream in streams:
        answer = tokens_of(stream)
        best = reference_logits("gpt_neox", stream.request, answer[:-1])[-6:].argmax(-1)
        assert answer == best.tolist()
