"""Metrics of generated texts against their references, of which a row may have several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import zip_longest
from typing import TYPE_CHECKING

from foreword.errors import UsageError
from foreword.evaluation.words import answer_words, mostly_cjk, plain_words

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

References = Sequence[Sequence[str]]
# Metrics of the `[eval]` extra, and the module that each needs.
_MODULES = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge_l": "rouge_score"}


def exact_match(predicted: Sequence[str], references: References) -> float:
    """Share of texts that equal one of their references, but for white space around them."""
    return _mean(predicted, references, lambda text, reference: float(text.strip() == reference.strip()))


def token_f1(predicted: Sequence[str], references: References) -> float:
    """Mean F1 of the words that a text shares with its best reference, as in the SQuAD evaluation; 0 to 1.

    Case, punctuation and English articles do not count; Chinese and Japanese are compared by characters.
    """
    return _mean(predicted, references, _token_f1)


def rouge_l(predicted: Sequence[str], references: References) -> float:
    """Mean F-measure of the longest common subsequence with the best reference (Lin 2004), by ``rouge-score``; 0 to 1.

    Without stemming; Chinese and Japanese are compared by characters. Raises UsageError without the `[eval]` extra.
    """
    _require("rouge_l")
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_PlainWords())
    return _mean(predicted, references, lambda text, reference: scorer.score(reference, text)["rougeL"].fmeasure)


def bleu(predicted: Sequence[str], references: References) -> float:
    """BLEU of the whole corpus by ``sacrebleu``, 0 to 100; cut as Chinese if the references mostly are.

    Raises UsageError without the `[eval]` extra.
    """
    _require("bleu")
    from sacrebleu.metrics.bleu import BLEU

    chinese = mostly_cjk(text for texts in references for text in texts)
    # `force`: it would otherwise warn of texts that look tokenized, which answers of a few words always do.
    return _corpus_score(BLEU(tokenize="zh" if chinese else "13a", force=True), predicted, references)


def chrf(predicted: Sequence[str], references: References) -> float:
    """chrF2 of the whole corpus by ``sacrebleu`` (Popović 2015), 0 to 100. Raises UsageError without `[eval]`."""
    _require("chrf")
    from sacrebleu.metrics.chrf import CHRF

    return _corpus_score(CHRF(), predicted, references)


def unavailable_metrics() -> tuple[str, ...]:
    """Metrics of generated texts that need the `[eval]` extra, which is not installed."""
    return tuple(name for name, module in _MODULES.items() if find_spec(module) is None)


class _PlainWords:
    """A tokenizer in the sense of ``rouge-score``."""

    def tokenize(self, text: str) -> list[str]:
        return plain_words(text)


def _mean(predicted: Sequence[str], references: References, score: Callable[[str, str], float]) -> float:
    """Mean over the rows of the score against the best reference."""
    rows = zip(predicted, references, strict=True)
    return sum(max(score(text, reference) for reference in candidates) for text, candidates in rows) / len(predicted)


def _token_f1(text: str, reference: str) -> float:
    words, expected = answer_words(text), answer_words(reference)
    if not words and not expected:
        return 1.0
    return 2 * (Counter(words) & Counter(expected)).total() / (len(words) + len(expected))


def _corpus_score(metric: Metric, predicted: Sequence[str], references: References) -> float:
    # One stream for every first, second, ... reference; None where a row has no more of them.
    streams = [list(stream) for stream in zip_longest(*references)]
    return metric.corpus_score(predicted, streams).score


def _require(name: str) -> None:
    if find_spec(_MODULES[name]) is None:
        raise UsageError(f"{name} needs the package {_MODULES[name]}; pip install 'foreword[eval]'.")
