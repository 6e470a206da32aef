"""Checks of the embedded engine: a short answer behind a prefix, or the scores of a head for an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foreword.cli.doctor.finding import Finding
from foreword.cli.generation_stats import GenerationTimer
from foreword.errors import EngineError, ForewordError

if TYPE_CHECKING:
    from foreword.models import LanguageModel

PREFIX_TEXT = "The quick brown fox"
REQUEST_TEXT = " jumps over the lazy"
TOKENS = 8


def check_engine(lm: LanguageModel) -> list[Finding]:
    """Start the engine, run one request and stop it."""
    try:
        return [_check_generation(lm) if lm.causal or lm.is_encoder_decoder else _check_scoring(lm)]
    except ForewordError as error:
        return [Finding("engine", "answer", "broken", str(error))]


def _check_generation(lm: LanguageModel) -> Finding:
    from foreword.core import SamplingParams
    from foreword.engine.engine import Engine
    from foreword.engine.protocol import Request
    from foreword.prompts.static import static_task
    from foreword.text import task_prompts

    task = static_task(lm, "doctor", "prompt", PREFIX_TEXT) if lm.causal else None
    prompt = task_prompts.from_text(
        lm.tokenizer, task, REQUEST_TEXT, causal=lm.causal, is_encoder_decoder=lm.is_encoder_decoder
    )
    with Engine(lm) as engine:
        timer = GenerationTimer()
        stream = engine.submit(Request.from_prompt(prompt, SamplingParams(max_tokens=TOKENS, ignore_eos=True)))
        for chunk in stream:
            timer.add(chunk)
            if chunk.error is not None:
                raise EngineError(chunk.error)
    what = "answer" if task is None else "answer behind a prefix"
    return Finding("engine", what, "good", str(timer.stats(stream)))


def _check_scoring(lm: LanguageModel) -> Finding:
    import torch

    from foreword.core import Head
    from foreword.engine.engine import Engine
    from foreword.models.activations import activations
    from foreword.text.label_scorers import head_scorer
    from foreword.text.prompt import Prompt

    front, ids = (tuple(lm.tokenizer(text).input_ids) for text in (PREFIX_TEXT, REQUEST_TEXT))
    prompt = Prompt(ids, activations(lm, front), len(front))
    width = lm.identity.head_size
    head = Head(("one", "other"), torch.zeros(2, width), torch.tensor([1.0, 0.0]))
    with Engine(lm) as engine:
        scores = engine.score([prompt], head_scorer(head))[0].tolist()
    if scores[0] - scores[1] != 1.0:
        return Finding("engine", "label behind a prefix", "broken", f"scores {scores}, expected them 1 apart")
    return Finding("engine", "label behind a prefix", "good", f"{len(front)} positions in front of {len(ids)} tokens")
