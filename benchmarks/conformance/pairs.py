"""What tiny models of all families are checked by, besides what `foreword bench conformance` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks.conformance.families import Family
from foreword.bench import conformance
from foreword.bench.conformance import (
    CACHE_BYTES,
    LENGTH,
    TEXTS,
    Figures,
    ModelPair,
    gradients,
    largest,
    logits,
    requests,
)
from foreword.bench.fixtures import random_prefix
from foreword.core import Batch, Front, KVPrefix, soft_id
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import BenchError
from foreword.models.load import load_model
from foreword.text.label_scorers import MaskScorer, WordScorer
from foreword.text.prompt import Prompt
from foreword.text.verbalizer import WordTrie
from foreword.training.loop.gradient_checkpointing import gradient_checkpointing

# Tokens that a decoder has written behind each text.
WRITTEN = (3, 1, 5)
# A word of one token, one of several, and one that is the beginning of another.
WORDS = ((0, (7,)), (1, (30, 31, 32)), (2, (30, 31)))


def load_pair(family: Family, folder: Path, seed: int) -> ModelPair:
    """Save a tiny model and load it. Raises UnsupportedModel if it carries no prefix."""
    family.save(folder, seed)
    lm = load_model(str(folder), dtype="float32", device="cpu", progress=lambda _: None)
    return (EncoderDecoderPair if lm.is_encoder_decoder else FamilyPair)(lm, folder, seed)


def checkpointing(pair: ModelPair) -> Figures:
    """Gradients with gradient checkpointing and without."""
    runs: list[nn.Module] = []
    hook = register_module_forward_pre_hook(lambda module, inputs: runs.append(module))

    def learned(wanted: bool) -> tuple[list[Tensor], int]:
        runs.clear()
        trainable = pair.trainable()
        with gradient_checkpointing(pair.lm, wanted):
            return gradients(pair.ours(trainable), trainable), len(runs)

    try:
        (found, run), (expected, run_once) = learned(True), learned(False)
    finally:
        hook.remove()
    # Equal gradients would say nothing if nothing had been forgotten and run again.
    if run <= run_once:
        raise BenchError(
            f"with checkpointing {run} modules ran, without {run_once}; the backward pass runs none again."
        )
    return {"difference": largest(found, expected)}


def engine(pair: ModelPair) -> Figures:
    """As for any model, and the scores of words; of an encoder, these at a place of the text."""
    if pair.lm.is_encoder_decoder or not pair.takes_past:
        return conformance.engine(pair)
    with Engine(pair.lm, cache_bytes=CACHE_BYTES) as running, torch.no_grad():
        if not running.causal:
            return {"difference": _label_difference(pair, running)}
        uses = requests(pair)
        prompts = [Prompt(request.token_ids, request.prefix, request.prefix_length) for request in uses]
        scores = running.score(prompts, WordScorer(WordTrie.build(WORDS, len(WORDS))))
        expected = torch.stack([_word_scores(pair, request) for request in uses])
    found = conformance.engine(pair)
    return {**found, "difference": max(found["difference"], float((scores - expected).abs().max()))}


def _word_scores(pair: ModelPair, request: Request) -> Tensor:
    """Log-probability of every word behind a request, each joined to it and run alone."""
    rows = [(logits(pair, request, word[:-1])[-len(word) :].log_softmax(-1), word) for _, word in WORDS]
    return torch.stack([logprobs.gather(1, torch.tensor(word)[:, None]).sum() for logprobs, word in rows])


def _label_difference(pair: ModelPair, running: Engine) -> float:
    """Of an encoder's log-probabilities of two words at a place of the text."""
    labels, prefixes = (7, 30), (None, pair.prefix(3, 1), pair.prefix(21, 2))
    prompts = []
    for index, (prefix, length) in enumerate(zip(prefixes, TEXTS, strict=True)):
        used, place = prefix.length if prefix is not None else 0, length // 2
        prompts.append(Prompt(pair.tokens(length, 10 + index), prefix, used, (place,)))
    found = running.score(prompts, MaskScorer(tuple((at, (token,)) for at, token in enumerate(labels)), len(labels)))
    rows = [pair.stock_logits(each.token_ids, each.prefix)[each.output_indices[0]].log_softmax(-1) for each in prompts]
    return float((found - torch.stack([row[list(labels)] for row in rows])).abs().max())


class FamilyPair(ModelPair):
    """Behind keys and values that no text could give, which tiny random models can bear."""

    def prefix(self, length: int, number: int = 0) -> KVPrefix:
        return random_prefix(self.lm.identity, length, self.generator(number), torch.float32)


class EncoderDecoderPair(FamilyPair):
    """Soft tokens in front of the encoder; rows are what the decoder has written."""

    def soft_tokens(self) -> Tensor:
        """Random ones, ``[LENGTH, hidden]``."""
        return torch.randn(LENGTH, self.lm.identity.hidden_size, generator=self.generator(0))

    @property
    def takes_past(self) -> bool:
        """Its soft tokens stand in front of the encoder, as Transformers takes them."""
        return True

    def trainable(self) -> list[Tensor]:
        return [self.soft_tokens().requires_grad_()]

    def ours(self, trainable: Sequence[Tensor]) -> list[Tensor]:
        (soft,) = trainable
        texts = [(*map(soft_id, range(LENGTH)), *text) for text in self.texts()]
        rows: list[Sequence[int]] = [ids for row, text in enumerate(texts) for ids in (text, self.written(row))]
        batch = Batch.from_rows(
            Front(inner_soft=soft), rows, [None if at % 2 == 0 else at - 1 for at in range(len(rows))]
        )
        # The decoder's first token comes out behind the text itself.
        ends = zip(batch.starts[1::2], WRITTEN, strict=True)
        places = [end - 1 + at for end, length in ends for at in range(length + 1)]
        return list(self.lm.logits(batch, torch.tensor(places)).split([length + 1 for length in WRITTEN]))

    def theirs(self, trainable: Sequence[Tensor]) -> list[Tensor]:
        embed = self.stock.get_input_embeddings()
        inputs = [torch.cat([trainable[0][None], embed(torch.tensor([text]))], 1) for text in self.texts()]
        return [self.stock(inputs_embeds=x, decoder_input_ids=self.begun(i)).logits[0] for i, x in enumerate(inputs)]

    def texts(self) -> list[tuple[int, ...]]:
        return [self.tokens(length, row) for row, length in enumerate(TEXTS)]

    def written(self, row: int) -> tuple[int, ...]:
        """What the decoder has written so far."""
        return self.tokens(WRITTEN[row], 100 + row)

    def begun(self, row: int) -> Tensor:
        """The same behind the token that it begins with."""
        lm: Any = self.lm
        return torch.tensor([[lm.decoder_start_token_id, *self.written(row)]])
