"""`EncoderDecoderEngine`: what evaluation asks of an encoder-decoder. Nothing serves one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

from torch import Tensor

from foreword.core import Batch, Front, KVPrefix, SamplingParams
from foreword.engine import scorer
from foreword.engine.admission import Admission
from foreword.engine.device_cache import DeviceCache
from foreword.engine.encoder_decoder_stream import EncoderDecoderStream
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request, TokenLogprob
from foreword.errors import EngineError, RequestError, UnsupportedModel, UnsupportedOption
from foreword.models import LanguageModel
from foreword.models.encoder_decoder import EncoderDecoder
from foreword.text.detokenize import Detokenizer
from foreword.text.label_scorers import LabelScorer
from foreword.text.request import Prompt

UNUSED = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "min_tokens",
    "logprobs",
    "constraint",
)

# Padded tokens of the texts that are read together.
BATCH_TOKENS = 4096


def evaluator(
    lm: LanguageModel, *, cache_bytes: int = 1 << 30, allow_other_weights: bool = False, reuse: bool = True
) -> Engine | EncoderDecoderEngine:
    """The engine that measures a model: the one that serves it, except for an encoder-decoder, which nothing serves.

    Args:
        reuse: see `Engine`; not for a model whose weights change meanwhile.
    """
    if isinstance(lm, EncoderDecoder):
        return EncoderDecoderEngine(lm, allow_other_weights=allow_other_weights)
    return Engine(lm, cache_bytes=cache_bytes, allow_other_weights=allow_other_weights, reuse=reuse)


class EncoderDecoderEngine:
    """Scores labels and writes greedy answers, in the thread of whoever asks: an `EngineProtocol` without a queue.

    Args:
        lm: an encoder-decoder.
        allow_other_weights: take tasks made for other weights of the same architecture.
    """

    def __init__(self, lm: EncoderDecoder, *, allow_other_weights: bool = False) -> None:
        self.name, self.tokenizer, self.identity, self.context = lm.name, lm.tokenizer, lm.identity, lm.context
        self.causal, self.decoder, self.reads_bank, self.alive = False, True, False, True
        self._lm = lm
        self._residents = DeviceCache(lm.model, lm.dtype, lm.device)
        self._admission = Admission(lm.identity, lm.context, sys.maxsize, allow_other_weights)
        self._waiting: list[EncoderDecoderStream] = []
        self._counters = dict.fromkeys(("requests", "tokens_generated", "scored"), 0)

    def submit(self, request: Request) -> EncoderDecoderStream:
        """Keep a request until its answer is read. Raises UnsupportedOption for one that is to be sampled."""
        self._check_open()
        self._admission.check(request)
        if request.sampling.temperature:
            raise UnsupportedOption(
                f"{self.name} is an encoder-decoder, which answers greedily; leave temperature at 0."
            )
        usual = SamplingParams()
        for name in UNUSED:
            if getattr(request.sampling, name) != getattr(usual, name):
                raise UnsupportedOption(f"{self.name} is an encoder-decoder, which takes no {name}; leave it out.")
        detokenizer = Detokenizer(self.tokenizer, request.sampling.stop)
        answer = EncoderDecoderStream(request, detokenizer, self._lm.end_ids, self._write_all)
        self._waiting.append(answer)
        self._counters["requests"] += 1
        return answer

    def score(self, prompts: Sequence[Prompt], choice: LabelScorer) -> Tensor:
        """See `EngineProtocol.score`."""
        self._check_open()
        for prompt in prompts:
            self._admission.check_prompt(prompt, choice.longest)
        return self._read(prompts, scorer.by_choice(choice))

    def likelihood(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """See `EngineProtocol.likelihood`. The decoder begins at a prompt's first place, which has to be named."""
        self._check_open()
        for prompt in prompts:
            self._admission.check_prompt(prompt, 0)
            if not prompt.places:
                raise RequestError(f"{self.name} is an encoder-decoder; name the place that its decoder begins at.")
        asked = [prompt.measured for prompt in prompts]
        found = self._read(asked, scorer.following(BATCH_TOKENS))
        return list(found[:, 0].split([len(prompt.places) for prompt in asked]))

    def prompt_logprobs(self, prompt: Prompt, top: int) -> list[TokenLogprob]:
        """Raises UnsupportedModel: the prompt of an encoder-decoder is read as a whole."""
        raise UnsupportedModel(f"{self.name} is an encoder-decoder, which reads its prompt as a whole.")

    def prefill(self, token_ids: Sequence[int]) -> KVPrefix:
        """Raises UnsupportedModel: an encoder-decoder takes soft tokens alone."""
        raise UnsupportedModel(f"{self.name} is an encoder-decoder, which takes no text in front; learn a soft prompt.")

    def statistics(self) -> dict[str, float]:
        """Counters since the start, and how many requests are ``waiting``."""
        return {**self._counters, "waiting": len(self._waiting)}

    def close(self) -> None:
        """Answers that nobody has read end as cancelled."""
        self.alive = False
        for answer in self._waiting:
            answer.cancel()
        self._waiting.clear()

    def __enter__(self) -> EncoderDecoderEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, prompts: Sequence[Prompt], reading: scorer.ScoringSpec) -> Tensor:
        pieces = scorer.pieces(self._lm, prompts, reading, self._residents, BATCH_TOKENS)
        for piece in pieces:
            piece.job.run()
        self._counters["scored"] += len(prompts)
        return scorer.gathered(pieces, prompts, reading.labels)

    def _check_open(self) -> None:
        if not self.alive:
            raise EngineError("the engine is closed; start it again.")

    def _write_all(self) -> None:
        """Write all answers that wait, those of one front and of similar lengths together."""
        waiting = sorted((a for a in self._waiting if not a.ended), key=lambda a: (_front(a), len(a.request.token_ids)))
        self._waiting.clear()
        for _, answers in groupby(waiting, _front):
            for batch in _cut(list(answers)):
                self._write(batch)

    def _write(self, answers: list[EncoderDecoderStream]) -> None:
        front = Front(inner=self._residents.soft(answers[0].request.soft))
        batch = Batch.behind(front, [answer.request.token_ids for answer in answers], device=self._lm.device)

        def choose(logits: Tensor) -> list[int] | None:
            most, tokens = logits.max(-1)  # the maximum of a row with a NaN is NaN
            for answer, token, good in zip(answers, tokens.tolist(), most.isfinite().tolist(), strict=True):
                answer.take(token if good else None)
            return None if all(answer.ended for answer in answers) else tokens.tolist()

        self._lm.write(batch, choose)
        self._counters["tokens_generated"] += sum(len(answer.token_ids) for answer in answers)


def _front(answer: EncoderDecoderStream) -> int:
    soft = answer.request.soft
    return soft.data_ptr() if soft is not None else 0  # slices of one task's soft tokens are one


def _cut(answers: list[EncoderDecoderStream]) -> Iterator[list[EncoderDecoderStream]]:
    """Sorted by length, in batches whose padded texts fit."""
    batch: list[EncoderDecoderStream] = []
    for answer in answers:
        if batch and (len(batch) + 1) * len(answer.request.token_ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(answer)
    if batch:
        yield batch
