"""What every architecture is checked for: a tiny random model, in Foreword and in plain Transformers, side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from foreword.bench.architectures import Architecture, byte_tokenizer
from foreword.bench.client import token_ids
from foreword.core import Batch, Front, KVPrefix, SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import BenchError, ForewordError
from foreword.models import LanguageModel
from foreword.models.load import load_model
from foreword.models.probe import prefix_left_by
from foreword.prompts.init import InitialValues
from foreword.prompts.lower import lower_tokens
from foreword.prompts.prefix import PrefixValues, PTuningV2
from foreword.text.label_scorers import MaskScorer
from foreword.text.prompt import Prompt

# Tokens of the fronts and the rows behind them: several lengths, with nothing in front of one.
LENGTHS = ((9, 6), (0, 3), (21, 1), (5, 9))
ANSWER, CACHE_BYTES = 6, 1 << 27
LEARNED, RATE = 5, 1e-2
# Of the logits' differences, in units of the largest logit.
TOLERANCE = 1e-3
# Long steps meet curvature and other choices of experts, short ones rounding; a wrong gradient is wrong at both.
STEPS, SLOPE_TOLERANCE = (1e-2, 1e-3), 0.1
MASK, WORDS = 2, ((0, (70,)), (1, (80,)), (2, (90,)))

Found = Mapping[str, Any]
"""The largest ``difference``, or why there is none: ``refused`` or ``failed``, and a sentence."""


@dataclass(frozen=True)
class TinyPair:
    """A tiny model that Foreword loaded, and the same weights in a model that never heard of it."""

    lm: LanguageModel
    stock: Any

    @cached_property
    def texts(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Fronts and rows of `LENGTHS`, of random ordinary tokens."""
        generator = torch.Generator().manual_seed(7)

        def draw(count: int) -> tuple[int, ...]:
            return tuple(torch.randint(5, 250, (count,), generator=generator).tolist())

        return [(draw(front), draw(row)) for front, row in LENGTHS]

    @torch.no_grad()
    def joined(self, front: Sequence[int], row: Sequence[int]) -> Tensor:
        """Logits ``[row, vocab]`` of a row behind a front, by Transformers alone, from the joined text."""
        return self.stock(input_ids=torch.tensor([[*front, *row]]), use_cache=False).logits[0, len(front) :]

    def prefix(self, front: Sequence[int], row: Sequence[int]) -> KVPrefix | None:
        return prefix_left_by(self.lm, front, row) if front else None


def joined_text(pair: TinyPair) -> Found:
    """Rows of several lengths behind several fronts, in one batch, against the joined texts."""
    batches = [Batch.from_rows(Front(pair.prefix(front, row)), [row]) for front, row in pair.texts]
    batch = Batch.concat(batches)
    with torch.no_grad():
        found = pair.lm.logits(batch, torch.arange(batch.starts[-1]))
    return {"difference": relative(found, torch.cat([pair.joined(front, row) for front, row in pair.texts]))}


def train(pair: TinyPair) -> Found:
    """Two steps of P-tuning v2. Raises BenchError if a layer learns nothing or its gradient is not the loss's slope."""
    start = InitialValues(LEARNED, torch.Generator().manual_seed(3), token_ids=pair.texts[0][0][:LEARNED])
    encoder = PTuningV2().encoder(pair.lm, start)
    parameters = [each for each in encoder.parameters() if each.requires_grad]
    rows = [row for _, row in pair.texts]
    targets = torch.tensor([row[place - 1] for row in rows for place in range(len(row))])

    def loss() -> Tensor:
        batch = Batch.from_rows(encoder.front(), rows)
        return F.cross_entropy(pair.lm.logits(batch, torch.arange(batch.starts[-1])), targets)

    optimizer, losses = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0), []
    for step in range(3):
        value = loss()
        losses.append(float(value.detach()))
        if step == 2:
            break
        optimizer.zero_grad()
        value.backward()
        check_gradients(pair.lm, encoder)
        if step == 0:
            slope = check_slope(loss, parameters)
        optimizer.step()
    if losses[2] == losses[0]:
        raise BenchError("the loss is the same after two steps.")
    return {"difference": slope, "losses": [round(each, 4) for each in losses]}


def check_gradients(lm: LanguageModel, encoder: PrefixValues) -> None:
    """Raise BenchError for a layer that gets no gradient, or one that is not finite."""
    gradient = encoder.values.inputs.grad
    rows = torch.zeros(LEARNED, 0) if gradient is None else gradient
    sizes = [shape.kv_heads * (shape.key_dim + shape.value_dim) for shape in lm.identity.layers]
    states = iter(encoder.states)
    for number, (shape, part) in enumerate(zip(lm.identity.layers, rows.split(sizes, dim=1), strict=True)):
        # Which keys an index chooses has no gradient: such a layer has keys and no values.
        attends = shape.kv_heads and shape.value_dim
        parts = [*([part] if attends else []), *(next(states).grad for _ in shape.states)]
        known = [each for each in parts if each is not None]
        if any(not bool(each.isfinite().all()) for each in known):
            raise BenchError(f"the gradient of layer {number} is not finite.")
        if parts and not any(bool(each.any()) for each in known):
            raise BenchError(f"no gradient arrives in layer {number}.")


def check_slope(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> float:
    """How far the loss's slope along the gradient is from what the gradient says, as a share. Raises BenchError."""
    gradients = [each.grad if each.grad is not None else torch.zeros_like(each) for each in parameters]
    norm = float(torch.stack([each.square().sum() for each in gradients]).sum().sqrt())
    wrong = min(abs(_slope(loss, parameters, gradients, step / norm) / norm**2 - 1) for step in STEPS)
    if not wrong < SLOPE_TOLERANCE:
        raise BenchError(f"the gradient differs from finite differences of the loss by {wrong:.0%}.")
    return wrong


@torch.no_grad()
def _slope(loss: Callable[[], Tensor], parameters: Sequence[Tensor], along: Sequence[Tensor], step: float) -> float:
    """Of the loss, by its values ``step`` times ``along`` on either side of the parameters."""
    values = []
    for by in (step, -step):
        for parameter, direction in zip(parameters, along, strict=True):
            parameter += by * direction
        values.append(float(loss()))
        for parameter, direction in zip(parameters, along, strict=True):
            parameter -= by * direction
    return (values[0] - values[1]) / (2 * step)


def engine(pair: TinyPair) -> Found:
    """Greedy tokens of mixed requests; an encoder scores labels at a mask."""
    return generate(pair) if pair.lm.causal else score(pair)


def generate(pair: TinyPair) -> Found:
    """By how much the logit of a greedy token is below the highest in Transformers, of the joined text."""
    sampling = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
    requests, fronts = [], []
    for front, row in pair.texts:
        prefix = lower_tokens(pair.lm, front) if front else None
        requests.append(Request(row, prefix, len(front), sampling))
        fronts.append(front)
    with Engine(pair.lm, cache_bytes=CACHE_BYTES) as running:
        answers = [token_ids(chunks) for chunks in running.generate(requests)]
    behind = []
    for request, front, answer in zip(requests, fronts, answers, strict=True):
        rows = pair.joined(front, [*request.token_ids, *answer[:-1]])[-len(answer) :]
        best = rows.max(-1, keepdim=True).values
        behind.append(float(((best - rows.gather(1, torch.tensor(answer)[:, None])) / rows.abs().max()).max()))
    return {"difference": max(behind)}


def score(pair: TinyPair) -> Found:
    """Scores of labels at a mask, each request behind a prefix of its own, against those of the joined texts."""
    scorer = MaskScorer(WORDS, len(WORDS))
    texts = [(front, row) for front, row in pair.texts if len(row) > MASK]
    prompts = [Prompt(row, pair.prefix(front, row), len(front), (MASK,)) for front, row in texts]
    with Engine(pair.lm, cache_bytes=CACHE_BYTES) as running:
        found = torch.as_tensor(running.score(prompts, scorer))
    words = [tokens[0] for _, tokens in WORDS]
    expected = torch.stack([pair.joined(front, row)[MASK].log_softmax(-1)[words] for front, row in texts])
    return {"difference": relative(found.reshape(expected.shape), expected)}


def peft(pair: TinyPair) -> Found:
    """Logits behind keys and values that PEFT puts in front of the same model, from an exported folder."""
    if find_spec("peft") is None:
        return {"refused": "PEFT is not installed."}
    from peft import PeftModel

    from foreword.interop.export import export_peft

    (front, _), row = pair.texts[0], pair.texts[3][1]
    prefix = PTuningV2().encoder(pair.lm, InitialValues(len(front), torch.Generator(), token_ids=front)).front().prefix
    task = Task("conformance", "p-tuning-v2", prefix.map(lambda tensor: tensor.detach()))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        export_peft(pair.lm, task, Path(folder) / "peft")
        found = pair.lm.logits(Batch.from_rows(Front(task.prefix), [row]), torch.arange(len(row)))
        try:
            other = PeftModel.from_pretrained(pair.stock, Path(folder) / "peft").eval()
            expected = other(input_ids=torch.tensor([row])).logits[0]
        except Exception as error:
            return {"refused": f"PEFT's own forward fails: {said(error)}"}
    if relative(expected, pair.joined((), row)) < TOLERANCE < relative(found, expected):
        return {"refused": "PEFT's prefix changes nothing: the model takes no past_key_values."}
    return {"difference": relative(found, expected)}


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the largest expected value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


Check = Callable[[TinyPair], Found]
CHECKS: Mapping[str, Check] = {"joined": joined_text, "train": train, "engine": engine, "peft": peft}


def examine(architecture: Architecture) -> Found:
    """Why it is ``not_built``, ``refused`` or ``failed``; or how it is ``carried`` and what all `CHECKS` found."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = architecture.build()
    except Exception as error:
        return {"not_built": said(error)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
            byte_tokenizer().save_pretrained(folder)
        except Exception as error:
            return {"not_built": f"it cannot be saved: {said(error)}"}
        try:
            lm = load_model(folder, dtype="float32", device="cpu", progress=lambda _: None)
        except ForewordError as error:
            return {"refused": str(error).replace(folder, architecture.model_type)}
        except Exception as error:
            return {"failed": said(error)}
        pair = TinyPair(lm, model)
        return {"carried": lm.carried, "checks": {name: run(check, pair) for name, check in CHECKS.items()}}


def run(check: Check, pair: TinyPair) -> Found:
    """What a check found, what Foreword refuses there, or how it failed."""
    try:
        found = check(pair)
    except BenchError as error:
        return {"failed": str(error)}
    except ForewordError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"failed": said(error)}
    difference = found.get("difference")
    if difference is not None and check is not train and not difference < TOLERANCE:
        return {**found, "difference": None, "failed": f"differs by {difference:.1g} of the largest value."}
    return found


def said(error: BaseException) -> str:
    """An error of a library in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:200]}" if lines else type(error).__name__
