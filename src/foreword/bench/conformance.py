"""`Conformance`: largest differences of a model in Foreword to the same weights in plain Transformers, in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache

from foreword.bench.architectures import encoder_decoder_checks, prefix_checks
from foreword.bench.architectures.plain_pair import PlainPair
from foreword.bench.client import token_ids
from foreword.bench.fixtures import random_prefix
from foreword.bench.participants import EMBEDDED
from foreword.bench.record import Record
from foreword.bench.workload import Case, Goal, Log, Options, Workload
from foreword.core import Batch, Front, KVPrefix, SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import BenchError, UnsupportedModel, UsageError
from foreword.models import LanguageModel
from foreword.models.auto_classes import auto_class
from foreword.models.load import load_model, pull
from foreword.prompts.lower import lower_tokens

Figures = Mapping[str, Any]
"""The largest ``difference``; or why there is none: ``refused``, ``missing`` or ``failed``, and a sentence."""
GOAL = 1e-4
# The cache takes memory as it fills.
ANSWER, CACHE_BYTES = 8, 1 << 29
# Of the prefix, and of the rows of a batch.
LENGTH, TEXTS = 9, (9, 1, 21)
# Ids that every vocabulary has, without the lowest, which are special in many.
IDS = (5, 256)


@dataclass(frozen=True)
class ModelPair:
    """A model that Foreword loaded in float32 from ``folder``; everything random about it comes from ``seed``."""

    lm: LanguageModel
    folder: Path
    seed: int

    def load_stock(self) -> Any:
        """The same weights in a model that never heard of Foreword, in float32 with eager attention."""
        auto = auto_class(self.lm.model.config)
        model = auto.from_pretrained(self.folder, dtype=torch.float32, attn_implementation="eager")
        return model.eval().requires_grad_(False)

    stock = cached_property(load_stock)

    @property
    def takes_past(self) -> bool:
        """Whether plain Transformers sees keys and values in front of a text, and nothing else stands there."""
        if type(self.lm) is not LanguageModel:
            return False
        ids = self.tokens(3, 0)
        with torch.no_grad():
            seen, alone = (self.stock_logits(ids, front) for front in (self.prefix(2), None))
        return not torch.equal(seen, alone)

    @property
    def checks(self) -> Any:
        """Those against the joined text, which need no past."""
        return encoder_decoder_checks if self.lm.is_encoder_decoder else prefix_checks

    def tokens(self, length: int, number: int) -> tuple[int, ...]:
        """Random ordinary tokens; another ``number`` gives others."""
        return tuple(torch.randint(*IDS, (length,), generator=self.generator(number)).tolist())

    def prefix(self, length: int, number: int = 0) -> KVPrefix:
        """Keys and values of random text, as if they were learned; what no text gives amplifies all rounding."""
        if self.lm.causal:
            return replace(lower_tokens(self.lm, self.tokens(length, 200 + number)), token_ids=None)
        return random_prefix(self.lm.identity, length, self.generator(number), torch.float32)

    def trainable(self) -> list[Tensor]:
        """Keys and values of a prefix, which require gradients."""
        prefix = self.prefix(LENGTH)
        return [tensor.requires_grad_() for tensor in (*prefix.keys, *prefix.values)]

    def ours(self, trainable: Sequence[Tensor]) -> list[Tensor]:
        """Logits ``[tokens, vocab]`` of every row behind what is trainable, by Foreword: one ragged batch."""
        texts = [self.tokens(length, row) for row, length in enumerate(TEXTS)]
        batch = Batch.from_rows(Front(self._as_prefix(trainable)), texts)
        return list(self.lm.logits(batch, torch.arange(sum(TEXTS))).split(TEXTS))

    def theirs(self, trainable: Sequence[Tensor]) -> list[Tensor]:
        """The same by Transformers alone, a row at a time."""
        prefix = self._as_prefix(trainable)
        return [self.stock_logits(self.tokens(length, row), prefix) for row, length in enumerate(TEXTS)]

    def stock_logits(self, token_ids: Sequence[int], prefix: KVPrefix | None) -> Tensor:
        """Logits ``[tokens, vocab]`` of a text behind a prefix, by Transformers alone."""
        past = None
        if prefix is not None:
            past = DynamicCache(config=self.stock.config)
            for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
                past.update(key[None], value[None], layer)
        return self.stock(input_ids=torch.tensor([[*token_ids]]), past_key_values=past).logits[0]

    def generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + number)

    def _as_prefix(self, trainable: Sequence[Tensor]) -> KVPrefix:
        half = len(trainable) // 2
        return replace(self.prefix(LENGTH), keys=tuple(trainable[:half]), values=tuple(trainable[half:]))


def largest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference between two lists of tensors."""
    return max(float((a - b).detach().abs().max()) for a, b in zip(found, expected, strict=True))


def train(pair: ModelPair) -> Figures:
    """Logits, and ``gradients`` in units of the largest one, behind something trainable; a loss has both.

    Where Transformers takes nothing in front, logits of the joined text, and gradients beside finite differences.
    """
    if not pair.takes_past:
        plain = PlainPair(pair.lm, pair.stock)
        gradient = pair.checks.train(plain)["difference"]
        return {"difference": pair.checks.joined_text(plain)["difference"], "gradients": gradient}
    ours, theirs = pair.trainable(), pair.trainable()
    found, expected = pair.ours(ours), pair.theirs(theirs)
    mine, reference = gradients(found, ours), gradients(expected, theirs)
    unit = max(float(each.abs().max()) for each in reference)
    return {"difference": largest(found, expected), "gradients": largest(mine, reference) / unit}


def engine(pair: ModelPair) -> Figures:
    """By how much the logit of a greedy token is below the highest in Transformers; of an encoder, label scores.

    Requests with different prefixes are together in the engine, and alone there.
    """
    if not pair.lm.causal or not pair.takes_past:
        return pair.checks.engine(PlainPair(pair.lm, pair.stock))
    with Engine(pair.lm, cache_bytes=CACHE_BYTES) as running, torch.no_grad():
        uses = requests(pair)
        answers = [token_ids(chunks) for chunks in running.generate(uses)]
        rows = [logits(pair, each, ids[:-1])[-ANSWER:] for each, ids in zip(uses, answers, strict=True)]
    chosen = [row.gather(1, torch.tensor(ids)[:, None]) for row, ids in zip(rows, answers, strict=True)]
    behind = [float((row.max(-1, keepdim=True).values - each).max()) for row, each in zip(rows, chosen, strict=True)]
    return {"difference": max(behind), "same_tokens": [row.argmax(-1).tolist() for row in rows] == answers}


def requests(pair: ModelPair) -> list[Request]:
    """Without a prefix, behind two learned ones, behind a static one and behind the beginning of it."""
    short, long = pair.prefix(3, 1), pair.prefix(21, 2)
    static = lower_tokens(pair.lm, pair.tokens(15, 3))
    uses = [(None, 0, 1), (short, 3, 13), (static, 15, 6), (long, 21, 1), (static, 5, 13), (short, 3, 6)]
    sampling = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
    return [
        Request(pair.tokens(length, 10 + index), prefix, used, sampling)
        for index, (prefix, used, length) in enumerate(uses)
    ]


def logits(pair: ModelPair, request: Request, more: Sequence[int]) -> Tensor:
    """Logits of a request's tokens and of ``more``, by Transformers alone."""
    prefix, own = request.prefix, [*request.token_ids, *more]
    if prefix is None or prefix.token_ids is None:
        return pair.stock_logits(own, prefix)
    return pair.stock_logits([*prefix.token_ids[: request.prefix_length], *own], None)[request.prefix_length :]


def gradients(rows: Sequence[Tensor], trainable: Sequence[Tensor]) -> list[Tensor]:
    """Of a loss that no symmetry of the logits leaves unchanged. Raises BenchError if none arrives."""
    loss = torch.stack([row.square().mean() + row[:, ::3].sum(-1).mean() for row in rows]).sum()
    found = torch.autograd.grad(loss, list(trainable), allow_unused=True, materialize_grads=True)
    if not any(bool(gradient.any()) for gradient in found):
        raise BenchError("no gradient arrives at what is trainable.")
    return list(found)


Check = Callable[[ModelPair], Figures]


class Conformance(Workload):
    """Whether your model learns and answers as in plain Transformers; it is held twice, in float32."""

    name = "conformance"
    engines = (EMBEDDED,)
    reads_data = False

    columns: ClassVar[Mapping[str, Check]] = {"train": train, "engine": engine}

    def cases(self, options: Options) -> list[Case]:
        return [options.case(options.model, self._measure, dtype="float32", title=options.model)]

    def goals(self, engine: str) -> Sequence[Goal]:
        return [Goal(f"{column}/largest_difference", GOAL, at_most=True) for column in self.columns]

    def values(self, records: Sequence[Record]) -> dict[str, float]:
        """The largest difference of every column in which nothing failed."""
        found = [(column, figures) for record in records for column, figures in record.metrics.items()]
        failed = {column for column, figures in found if "failed" in figures}
        known = [(c, figures["difference"]) for c, figures in found if "difference" in figures and c not in failed]
        return {f"{column}/largest_difference": max(d for c, d in known if c == column) for column, _ in known}

    def compare(self, load: Callable[[], ModelPair], checks: Mapping[str, Check], log: Log) -> dict[str, Figures]:
        """The result of every check; a model that cannot be loaded is refused by all of them."""
        found: dict[str, Figures] = {}
        try:
            pair = load()
        except UnsupportedModel as error:
            log(f"  refused: {error}")
            return {column: {"refused": str(error)} for column in checks}
        for column, check in checks.items():
            try:
                found[column] = check(pair)
            except (UnsupportedModel, UsageError) as error:
                found[column] = {"refused": str(error)}
            log(f"  {column}: {found[column]}")
        return found

    def _measure(self, options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Figures]:
        return self.compare(partial(load_pair, options.model, options.seed), self.columns, log)


def load_pair(name: str, seed: int) -> ModelPair:
    """Load a model in float32. Raises UnsupportedModel if it has no logits behind a prefix."""
    lm = load_model(name, dtype="float32", device="cpu", progress=lambda _: None)
    if not lm.has_lm_head:
        raise UnsupportedModel(f"{name} has no logits to compare; give a model with an output matrix.")
    return ModelPair(lm, pull(name, lambda _: None), seed)
