"""What decoders and encoders are checked for: a tiny random model, in Foreword and in plain Transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from foreword.bench.architectures.plain_pair import TOLERANCE, Found, PlainPair, relative, said
from foreword.bench.architectures.two_steps import two_steps
from foreword.bench.client import token_ids
from foreword.core import Batch, Front, KVPrefix, SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import BenchError
from foreword.interop.export import export_peft
from foreword.models import LanguageModel
from foreword.models.probe import prefix_left_by
from foreword.prompts.init import InitialValues
from foreword.prompts.lower import lower_tokens
from foreword.prompts.prefix import PrefixValues, PTuningV2
from foreword.text.label_scorers import MaskScorer
from foreword.text.prompt import Prompt

ANSWER, CACHE_BYTES = 6, 1 << 27
LEARNED = 5
MASK, WORDS = 2, ((0, (70,)), (1, (80,)), (2, (90,)))


@torch.no_grad()
def joined_logits(pair: PlainPair, front: Sequence[int], row: Sequence[int]) -> Tensor:
    """Logits ``[row, vocab]`` of a row behind a front, by Transformers alone, from the joined text."""
    options = {"use_cache": False} if "use_cache" in signature(pair.stock.forward).parameters else {}
    return pair.stock(input_ids=torch.tensor([[*front, *row]]), **options).logits[0, len(front) :]


def front_of(pair: PlainPair, front: Sequence[int], row: Sequence[int]) -> KVPrefix | None:
    """The prefix with which the row has the logits of the joined text."""
    return prefix_left_by(pair.lm, front, row) if front else None


def joined_text(pair: PlainPair) -> Found:
    """Rows of several lengths behind several fronts, in one batch, against the joined texts."""
    batches = [Batch.from_rows(Front(front_of(pair, front, row)), [row]) for front, row in pair.texts]
    batch = Batch.concat(batches)
    with torch.no_grad():
        found = pair.lm.logits(batch, torch.arange(batch.starts[-1]))
    return {"difference": relative(found, torch.cat([joined_logits(pair, front, row) for front, row in pair.texts]))}


def train(pair: PlainPair) -> Found:
    """Two steps of P-tuning v2. Raises BenchError if a layer learns nothing or its gradient is not the loss's slope."""
    start = InitialValues(LEARNED, torch.Generator().manual_seed(3), token_ids=pair.texts[0][0][:LEARNED])
    encoder = PTuningV2().encoder(pair.lm, start)
    rows = [row for _, row in pair.texts]
    targets = torch.tensor([row[place - 1] for row in rows for place in range(len(row))])

    def loss() -> Tensor:
        batch = Batch.from_rows(encoder.front(), rows)
        return F.cross_entropy(pair.lm.logits(batch, torch.arange(batch.starts[-1])), targets)

    parameters = [each for each in encoder.parameters() if each.requires_grad]
    return two_steps(loss, parameters, lambda: check_gradients(pair.lm, encoder))


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


def engine(pair: PlainPair) -> Found:
    """Greedy tokens of mixed requests; an encoder scores labels at a mask."""
    return generate(pair) if pair.lm.causal else score(pair)


def generate(pair: PlainPair) -> Found:
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
        rows = joined_logits(pair, front, [*request.token_ids, *answer[:-1]])[-len(answer) :]
        best = rows.max(-1, keepdim=True).values
        behind.append(float(((best - rows.gather(1, torch.tensor(answer)[:, None])) / rows.abs().max()).max()))
    return {"difference": max(behind)}


def score(pair: PlainPair) -> Found:
    """Scores of labels at a mask, each request behind a prefix of its own, against those of the joined texts."""
    scorer = MaskScorer(WORDS, len(WORDS))
    texts = [(front, row) for front, row in pair.texts if len(row) > MASK]
    prompts = [Prompt(row, front_of(pair, front, row), len(front), (MASK,)) for front, row in texts]
    with Engine(pair.lm, cache_bytes=CACHE_BYTES) as running:
        found = torch.as_tensor(running.score(prompts, scorer))
    words = [tokens[0] for _, tokens in WORDS]
    expected = torch.stack([joined_logits(pair, front, row)[MASK].log_softmax(-1)[words] for front, row in texts])
    return {"difference": relative(found.reshape(expected.shape), expected)}


def peft(pair: PlainPair) -> Found:
    """Logits behind keys and values that PEFT puts in front of the same model, from an exported folder."""
    if find_spec("peft") is None:
        return {"refused": "PEFT is not installed."}
    (front, _), row = pair.texts[0], pair.texts[3][1]
    prefix = PTuningV2().encoder(pair.lm, InitialValues(len(front), torch.Generator(), token_ids=front)).front().prefix
    assert prefix is not None
    task = Task("conformance", "p-tuning-v2", prefix.map(lambda tensor: tensor.detach()))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        export_peft(pair.lm, task, Path(folder) / "peft")
        found = pair.lm.logits(Batch.from_rows(Front(task.prefix), [row]), torch.arange(len(row)))
        try:
            other = import_module("peft").PeftModel.from_pretrained(pair.stock, Path(folder) / "peft").eval()
            expected = other(input_ids=torch.tensor([row])).logits[0]
        except Exception as error:
            return {"refused": f"PEFT's own forward fails: {said(error)}"}
    if relative(expected, joined_logits(pair, (), row)) < TOLERANCE < relative(found, expected):
        return {"refused": "PEFT's prefix changes nothing: the model takes no past_key_values."}
    if not (differs := relative(found, expected)) < TOLERANCE and not pair.lm.causal:
        # BERT-like models count positions on behind a past, or keep keys that are not rotated yet: each in its own way.
        return {
            "refused": f"PEFT's keys or positions mean something else in this encoder; logits differ by {differs:.0%}."
        }
    return {"difference": relative(found, expected)}
