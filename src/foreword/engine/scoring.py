"""Scoring in ragged batches of a bounded size: labels behind many prompts, the prompts' own tokens, embeddings.

`Engine` runs the batches as jobs between its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby

import torch
from torch import Tensor

from foreword.core import Batch, Front, Pooling
from foreword.engine.device_cache import DeviceCache
from foreword.engine.job import Job
from foreword.models import LanguageModel
from foreword.text.encoded_example import EncodedExample
from foreword.text.label_scorers import LabelScorer
from foreword.text.prompt import Prompt
from foreword.text.ragged import batch_by_tokens, make_batch

FrontGroup = tuple[Front, list[EncodedExample]]
"""Examples behind one front."""


@dataclass(frozen=True)
class ScoringSpec:
    """A computation of scores for prompts.

    Attributes:
        forward: from groups of examples to scores ``[places, columns]``, a row for each place of each example.
        size: tokens that an example takes in a batch.
        columns: of the scores.
    """

    forward: Callable[[LanguageModel, Sequence[FrontGroup]], Tensor]
    size: Callable[[EncodedExample], int]
    columns: int


@dataclass(frozen=True, eq=False)
class ScoringBatch:
    """Prompts that are scored in one forward.

    Attributes:
        indices: of these prompts among the caller's.
        job: computes their scores ``[places, columns]``, in this order.
    """

    indices: list[int]
    job: Job[Tensor]


def label_scores(scorer: LabelScorer) -> ScoringSpec:
    """Scores of a task's labels; see `foreword.engine.protocol.EngineProtocol.score`."""

    @torch.inference_mode()
    def forward(lm: LanguageModel, groups: Sequence[FrontGroup]) -> Tensor:
        batch, rows = _concat([scorer.make_batch(front, examples, lm.device) for front, examples in groups])
        return (
            scorer.scores(lm.hidden_states(batch, rows) if scorer.uses_hidden_states else lm.logits(batch, rows))
            .float()
            .cpu()
        )

    return ScoringSpec(forward, scorer.num_tokens, scorer.num_labels)


def next_token_logprobs(max_rows: int, top: int = 0) -> ScoringSpec:
    """Log-probability of the token behind each place.

    Args:
        max_rows: rows of logits that are in memory at a time.
        top: how many of the most probable tokens are read, too: the first column is the token's own log-probability,
            then come ``top`` ids, best first, and their ``top`` log-probabilities.
    """

    @torch.inference_mode()
    def forward(lm: LanguageModel, groups: Sequence[FrontGroup]) -> Tensor:
        cut = [
            (front, [EncodedExample(e.token_ids[: _num_run(e)], e.output_indices) for e in examples])
            for front, examples in groups
        ]
        batch, rows = _concat(
            [make_batch(*group, lm.device, is_encoder_decoder=lm.is_encoder_decoder) for group in cut]
        )
        tokens = [e.token_ids[place + 1] for _, examples in groups for e in examples for place in e.output_indices]
        parts = zip(rows.split(max_rows), torch.tensor(tokens, device=lm.device).split(max_rows), strict=True)
        return torch.cat([_logprobs(lm.logits(batch, part), wanted, top) for part, wanted in parts]).cpu()

    return ScoringSpec(forward, _num_run, 1 + 2 * top)


def embeddings(pooling: Pooling, columns: int) -> ScoringSpec:
    """Normalized embeddings of examples with one place each; see `foreword.engine.protocol.EngineProtocol.embed`."""

    @torch.inference_mode()
    def forward(lm: LanguageModel, groups: Sequence[FrontGroup]) -> Tensor:
        pooled = [
            (front, [EncodedExample(e.token_ids, _pooled_indices(e, pooling)) for e in examples])
            for front, examples in groups
        ]
        batch, rows = _concat(
            [make_batch(*group, lm.device, is_encoder_decoder=lm.is_encoder_decoder) for group in pooled]
        )
        counts = [len(e.output_indices) for _, examples in pooled for e in examples]
        states = lm.hidden_states(batch, rows).float().split(counts)
        return torch.nn.functional.normalize(torch.stack([each.mean(0) for each in states]), dim=-1).cpu()

    return ScoringSpec(forward, lambda example: len(example.token_ids), columns)


def make_batches(
    lm: LanguageModel, prompts: Sequence[Prompt], spec: ScoringSpec, device_cache: DeviceCache, max_tokens: int
) -> list[ScoringBatch]:
    """Divide prompts into batches, those behind the same front next to each other, by their lengths.

    Args:
        device_cache: converts their prefixes and adapters.
        max_tokens: of a batch; a longer prompt is a batch of its own.
    """
    order = sorted(range(len(prompts)), key=lambda i: (*_front_key(prompts[i]), len(prompts[i].token_ids)))
    batches = []
    for indices in batch_by_tokens([(index, spec.size(prompts[index].encoded_example)) for index in order], max_tokens):
        groups = [
            (_front(prompts[group[0]], device_cache), [prompts[index].encoded_example for index in group])
            for group in (list(same) for _, same in groupby(indices, lambda index: _front_key(prompts[index])))
        ]
        batches.append(ScoringBatch(indices, Job(partial(spec.forward, lm, groups), len(indices))))
    return batches


def gather_scores(
    batches: Sequence[ScoringBatch], results: Sequence[Tensor], prompts: Sequence[Prompt], columns: int
) -> Tensor:
    """Scores ``[places, columns]`` in the order of the prompts, from the results of the batches."""
    starts = [0, *accumulate(len(prompt.encoded_example.output_indices) for prompt in prompts)]
    scores = torch.empty(starts[-1], columns)
    for batch, result in zip(batches, results, strict=True):
        rows = [row for index in batch.indices for row in range(starts[index], starts[index + 1])]
        scores[rows] = result
    return scores


def _front(prompt: Prompt, device_cache: DeviceCache) -> Front:
    return Front(
        prefix=device_cache.prefix(prompt.prefix, prompt.prefix_length),
        inner_soft=device_cache.soft(prompt.soft),
        adapter=device_cache.adapter(prompt.adapter),
    )


def _front_key(prompt: Prompt) -> tuple[int, int, int, int]:
    """Equal for prompts behind the same front."""
    soft = prompt.soft.data_ptr() if prompt.soft is not None else 0  # slices of one task's soft tokens are one
    return id(prompt.prefix), prompt.prefix_length, soft, id(prompt.adapter)


def _concat(laid_out: Sequence[tuple[Batch, Tensor]]) -> tuple[Batch, Tensor]:
    """Batches and their places as one."""
    firsts = [0, *accumulate(batch.starts[-1] for batch, _ in laid_out)]
    places = [places + first for (_, places), first in zip(laid_out, firsts, strict=False)]
    return Batch.concat([batch for batch, _ in laid_out]), torch.cat(places)


def _pooled_indices(example: EncodedExample, pooling: Pooling) -> tuple[int, ...]:
    """Indices of the tokens whose hidden states are pooled; soft tokens are the task's and no part of the text."""
    own = tuple(index for index, token in enumerate(example.token_ids) if token >= 0)
    return {"mean": own, "last": own[-1:], "cls": own[:1]}[pooling]


def _num_run(example: EncodedExample) -> int:
    """Tokens of an example up to its last place: those behind are predicted and never run."""
    return example.output_indices[-1] + 1


def _logprobs(logits: Tensor, tokens: Tensor, top: int) -> Tensor:
    """``[K, 1 + 2 * top]`` float32 of ``tokens [K]`` from logits ``[K, vocab]``."""
    # A log-softmax would be one more copy of the whole vocabulary.
    total = logits.float().logsumexp(-1)[:, None]
    own = logits.gather(1, tokens[:, None]).float() - total
    best = logits.float().topk(top)  # ids below 2 ** 24 are exact in float32
    return torch.cat([own, best.indices.float(), best.values - total], dim=1)
