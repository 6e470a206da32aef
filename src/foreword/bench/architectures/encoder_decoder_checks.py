"""What encoder-decoders are checked for: a tiny random model, in Foreword and in plain Transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from foreword.bench.architectures.plain_pair import TOLERANCE, Found, PlainPair, relative, said
from foreword.bench.architectures.prefix_checks import check_gradients
from foreword.bench.architectures.two_steps import two_steps
from foreword.bench.client import token_ids
from foreword.core import Batch, Front, SamplingParams, soft_id
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import BenchError
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import InitialValues
from foreword.prompts.prefix import PTuningV2
from foreword.prompts.soft import PromptTuning

ANSWER, CACHE_BYTES = 6, 1 << 27
LEARNED = 5


@torch.no_grad()
def joined_logits(pair: PlainPair, text: Sequence[int], answer: Sequence[int] = ()) -> Tensor:
    """Logits ``[1 + answer, vocab]`` of an answer to a text, by Transformers alone."""
    decoder = torch.tensor([[pair.stock.config.decoder_start_token_id, *answer]])
    return pair.stock(input_ids=torch.tensor([[*text]]), decoder_input_ids=decoder, use_cache=False).logits[0]


def soft_front(pair: PlainPair, front: Sequence[int]) -> Tensor:
    """The front's own embeddings, as soft tokens ``[P, hidden]`` that stand for it."""
    table = pair.lm.model.get_input_embeddings()
    with torch.no_grad():
        return table(torch.tensor(front)) * getattr(pair.lm, "embed_scale", 1.0)


def joined_text(pair: PlainPair) -> Found:
    """The first token of answers to texts that begin with soft tokens, in one batch, against the joined texts."""
    parts = []
    for front, row in pair.texts:
        ids = [*map(soft_id, range(len(front))), *row]
        parts.append(Batch.from_rows(Front(inner_soft=soft_front(pair, front)) if front else Front(), [ids]))
    batch = Batch.concat(parts)
    with torch.no_grad():
        found = pair.lm.logits(batch, torch.tensor(batch.starts[1:]) - 1)
    return {"difference": relative(found, torch.cat([joined_logits(pair, [*f, *row]) for f, row in pair.texts]))}


def train(pair: PlainPair) -> Found:
    """Two steps of prompt tuning in front of the encoder, and two of P-tuning v2 in all layers."""
    start = InitialValues(LEARNED, torch.Generator().manual_seed(3), token_ids=pair.texts[0][0][:LEARNED])
    soft, prefix = PromptTuning().encoder(pair.lm, start), PTuningV2().encoder(pair.lm, start)
    targets = torch.tensor([row[0] for _, row in pair.texts])

    def steps(encoder: PromptEncoder, front: Sequence[int], check_gradients: Callable[[], None]) -> Found:
        def loss() -> Tensor:
            batch = Batch.from_rows(encoder.front(), [[*front, *row] for _, row in pair.texts])
            return F.cross_entropy(pair.lm.logits(batch, torch.tensor(batch.starts[1:]) - 1), targets)

        return two_steps(loss, [each for each in encoder.parameters() if each.requires_grad], check_gradients)

    def check_soft() -> None:
        gradients = [each.grad for each in soft.parameters() if each.grad is not None]
        if not gradients or not all(bool(each.isfinite().all() and each.any(-1).all()) for each in gradients):
            raise BenchError("no gradient arrives at a soft token, or one that is not finite.")

    found = [
        steps(soft, [*map(soft_id, range(LEARNED))], check_soft),
        steps(prefix, (), lambda: check_gradients(pair.lm, prefix)),
    ]
    return {"difference": max(each["difference"] for each in found)}


def engine(pair: PlainPair) -> Found:
    """By how much the logit of a greedy token is below the highest in Transformers, of the joined text."""
    sampling = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
    requests = [
        Request((*map(soft_id, range(len(front))), *row), None, 0, sampling, soft_front(pair, front) if front else None)
        for front, row in pair.texts
    ]
    with Engine(pair.lm, cache_bytes=CACHE_BYTES) as running:
        answers = [token_ids(chunks) for chunks in running.generate(requests)]
    behind = []
    for (front, row), answer in zip(pair.texts, answers, strict=True):
        rows = joined_logits(pair, [*front, *row], answer[:-1])
        lost = rows.max(-1, keepdim=True).values - rows.gather(1, torch.tensor(answer)[:, None])
        behind.append(float((lost / rows.abs().max()).max()))
    return {"difference": max(behind)}


def peft(pair: PlainPair) -> Found:
    """Logits behind the same soft tokens in PEFT's prompt tuning."""
    if find_spec("peft") is None:
        return {"refused": "PEFT is not installed."}
    library = import_module("peft")
    front, row = pair.texts[0]
    soft = soft_front(pair, front)
    ids = [*map(soft_id, range(len(front))), *row]
    with torch.no_grad():
        found = pair.lm.logits(Batch.from_rows(Front(inner_soft=soft), [ids]), torch.tensor([len(ids) - 1]))
        try:
            config = library.PromptTuningConfig(
                task_type="SEQ_2_SEQ_LM", num_virtual_tokens=len(front), num_transformer_submodules=1
            )
            other = library.get_peft_model(copy.deepcopy(pair.stock), config).eval()
            other.prompt_encoder["default"].embedding.weight.copy_(soft)
            start = torch.tensor([[pair.stock.config.decoder_start_token_id]])
            expected = other(input_ids=torch.tensor([row]), decoder_input_ids=start).logits[0]
        except Exception as error:
            return {"refused": f"PEFT's own forward fails: {said(error)}"}
    if relative(expected, joined_logits(pair, row)) < TOLERANCE < relative(found, expected):
        return {"refused": "PEFT's prompt changes nothing in this model."}
    return {"difference": relative(found, expected)}
