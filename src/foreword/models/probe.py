"""The support probe: a model is supported if a prefix gives it the outputs of the joined text, whatever its name.

Run once at load, for every way in which a model may carry prefixes. A way brings a `LanguageModel` whose `logits` (or
`hidden_states`, without an output matrix) answer rows behind prefixes, and through which `prefix_left_by` makes these.
The reference is always Transformers' own eager forward of the joined texts, one at a time and without a cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from foreword.core import Batch, Front, KVPrefix
from foreword.errors import UnsupportedModel
from foreword.models.activations import activations
from foreword.models.attention_implementation import eager_attention
from foreword.models.language_model import LanguageModel, model_body
from foreword.models.proof import Comparison, Proof

TEXTS = (
    "The harbour was quiet that morning, and nobody had lit the lamps yet; only the old ferry rocked at its rope.",
    "Frage: Wie spät fährt der letzte Zug nach Hause? Antwort: Um zehn vor zwölf, aber nur am Wochenende.",
    "今天下午我们去图书馆借了三本书，其中一本讲的是海洋里的动物，另外两本是小说。",
    "def area(width, height):\n    # Both in metres.\n    return width * height\n\nprint(area(3, 4.5))\n",
    "La réunion commence à neuf heures ; merci d'apporter les chiffres du mois dernier et deux idées nouvelles.",
    "Сегодня вечером дети рисуют дом, дерево и большую рыжую собаку, которая спит у самой двери.",
)
# Rows of different lengths behind two fronts and behind none, in tokens: batches may be right one row at a time only.
LONG_FRONT, LONG_ROW = 11, 7
SHORT_FRONT, SHORT_ROW = 5, 4
BARE_ROW = 3
# Share of a prefix's effect that may be lost to rounding, in units of the dtype's own precision. In 24 draws of texts
# SmolLM2-135M loses 3.4 to 8.1 in bfloat16, 3.2 to 8.5 in float16 and 15 to 37 in float32, where a floor is put: less
# than a thousandth is rounding in any model. A prefix that one of its 30 layers does not see loses 0.07 to 0.5.
TOLERANCE = 24.0
FLOOR = 1e-3
# The first draw is enough where it is this clear; else the median of all decides, since a model of which rounding
# turns one choice (an expert, a huge activation) is far off in single texts.
CLEAR = 0.5
# Pairs of texts, by number. A quick model is compared on all of them.
PAIRS = ((0, 1), (2, 3), (4, 5), (1, 2), (3, 4))
QUICK = 0.1
FORWARD_ERRORS = (
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    AssertionError,
)


class NotFinite(UnsupportedModel):
    """The model gives NaN or infinity by itself: no way of carrying prefixes mends that."""


@dataclass(frozen=True)
class Draw:
    """Rows that are compared in one batch: token ids of every row, and of the front before it (empty for none)."""

    fronts: tuple[tuple[int, ...], ...]
    rows: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, first: Sequence[int], second: Sequence[int]) -> Draw:
        """A long row of one text and a short one of another, each behind the front of its text, and a row alone."""
        long, short = LONG_FRONT + LONG_ROW, SHORT_FRONT + SHORT_ROW
        return cls(
            (tuple(first[:LONG_FRONT]), (), tuple(second[:SHORT_FRONT])),
            (tuple(first[LONG_FRONT:long]), tuple(second[:BARE_ROW]), tuple(second[SHORT_FRONT:short])),
        )


@torch.no_grad()
def prove(lm: LanguageModel) -> Proof:
    """Compare rows behind prefixes, in one batch, with Transformers' own forward of the joined texts.

    Args:
        lm: assembled by any way; it is run through `LanguageModel.logits` or `LanguageModel.hidden_states`, and for
            its prefixes through `prefix_left_by`.

    Raises:
        UnsupportedModel: the outputs differ by more than rounding, or some are not finite (`NotFinite`), or a forward
            fails.
    """
    name = type(lm.model).__name__
    try:
        proof = prove_by(lm, lambda first, second: _compare(lm, Draw.of(first, second)))
    except FORWARD_ERRORS as error:
        raise UnsupportedModel(f"{name} cannot carry a prefix: its forward failed with {error!r}.") from error
    if not proof.share <= 1:
        if lm.causal and _sees_what_follows(lm):
            raise UnsupportedModel(
                f"{name} reads a text in both directions: what its tokens see depends on those behind them, so nothing "
                "that a text leaves can stand in front of a request."
            )
        raise UnsupportedModel(
            f"{name} does not give the same logits with text as a prefix as with the joined text: they differ by "
            f"{proof.difference:.3g}, where leaving the prefix out changes them by {proof.effect:.3g}{_mend(lm)}."
        )
    return proof


def _mend(lm: LanguageModel) -> str:
    """For layers that round their inputs (LLM.int8), whose outputs are less exact than their dtype says."""
    if lm.quantization is None or lm.dtype != torch.float32:
        return ""
    return f"; its weights are quantized ({lm.quantization}), so try --dtype bfloat16, which promises less"


def prove_by(lm: LanguageModel, compare_texts: Callable[[list[int], list[int]], Comparison]) -> Proof:
    """The result of as many draws as it takes; the caller judges its share.

    Args:
        compare_texts: compares on two texts of ``LONG_FRONT + LONG_ROW`` tokens.
    """
    texts = [text_ids(lm.tokenizer, lm.identity.vocab_size, text, LONG_FRONT + LONG_ROW) for text in TEXTS]
    comparisons: list[Comparison] = []
    for first, second in PAIRS:
        begun = time.monotonic()
        comparisons.append(compare_texts(texts[first], texts[second]))
        if len(comparisons) == 1 and comparisons[0].share <= CLEAR and time.monotonic() - begun > QUICK:
            break
    return Proof.of(comparisons)


def _sees_what_follows(lm: LanguageModel) -> bool:
    """Whether Transformers alone gives a front other outputs where a row stands behind it."""
    ids = tuple(text_ids(lm.tokenizer, lm.identity.vocab_size, TEXTS[0], LONG_FRONT + LONG_ROW))
    alone = _reference(lm, Draw(((),), (ids[:LONG_FRONT],)))
    joined = _reference(lm, Draw(((),), (ids,)))[:LONG_FRONT]
    return compare(alone, alone.roll(1, 0), joined).share > 1


def compare(found: Tensor, without: Tensor, reference: Tensor) -> Comparison:
    """How far outputs ``[N, vocab]`` are from the reference, beside what leaving the prefix out would change.

    A word that is masked out everywhere is left out of it.

    Raises:
        NotFinite: the reference is not of numbers.
        UnsupportedModel: it is, and the outputs are not.
    """
    dtype, precision = reference.dtype, torch.finfo(reference.dtype).eps
    found, without, reference = found.float(), without.float(), reference.float()
    masked = (reference <= torch.finfo(dtype).min) & (found <= torch.finfo(dtype).min)
    kept = ~masked.all(0)
    found, without, reference = found[:, kept], without[:, kept], reference[:, kept]
    if not bool(reference.isfinite().all()):
        raise NotFinite(_not_finite(dtype))
    if not bool(found.isfinite().all()):
        raise UnsupportedModel("behind a prefix the model gives NaN or infinity, where the joined text gives numbers.")
    difference, effect = _distance(found, reference), _distance(without, found)
    rounding = 4 * precision * float(reference.square().mean().sqrt())
    return Comparison(difference, effect, max(max(TOLERANCE * precision, FLOOR) * effect, rounding))


def _not_finite(dtype: torch.dtype) -> str:
    said = str(dtype).removeprefix("torch.")
    mend = (
        "its values are too large for float16; use --dtype bfloat16 or float32"
        if dtype == torch.float16
        else "its weights are damaged, or an operation of this device is; load it elsewhere, or with --dtype float32"
    )
    return f"the model gives NaN or infinity on ordinary text in {said}: {mend}."


def _compare(lm: LanguageModel, draw: Draw) -> Comparison:
    return compare(_found(lm, draw), _without(lm, draw), _reference(lm, draw))


def prefix_left_by(lm: LanguageModel, front: Sequence[int], row: Sequence[int]) -> KVPrefix:
    """The prefix with which ``row`` must give the outputs that it has behind ``front`` in the joined text.

    For a causal model it is what the front alone leaves (`activations`). In a model that reads in both directions the
    front sees the row too: there it is the keys and values at the front's positions in the joined run, from which the
    row's outputs follow layer by layer.
    """
    if lm.causal:
        return activations(lm, front)
    return lm.kept(Batch.from_rows(Front(), [(*front, *row)], device=lm.device), len(front))


def text_ids(tokenizer: Any, rows: int, text: str, count: int) -> list[int]:
    """The first ``count`` tokens of a text; of a tokenizer that cannot write it, ordinary words of its vocabulary.

    Args:
        rows: of the model's embedding; a tokenizer may know tokens beyond.
    """
    try:
        ids = list(tokenizer(text)["input_ids"])[:count]
    except (TypeError, ValueError, KeyError, RuntimeError):
        ids = []
    unknown = getattr(tokenizer, "unk_token_id", None)
    if len(ids) == count and max(ids) < rows and ids.count(unknown) <= 1:
        return ids
    special = set(getattr(tokenizer, "all_special_ids", None) or ())
    ordinary = [token for token in range(rows) if token not in special] or list(range(rows))
    return [ordinary[(len(text) + len(ordinary) // 3 + step * 7919) % len(ordinary)] for step in range(count)]


def _found(lm: LanguageModel, draw: Draw) -> Tensor:
    """Outputs ``[N, vocab]`` of all rows behind their prefixes, in one batch."""
    parts = [
        Batch.from_rows(Front(prefix_left_by(lm, front, row) if front else None), [row], device=lm.device)
        for front, row in zip(draw.fronts, draw.rows, strict=True)
    ]
    return _outputs(lm, Batch.concat(parts))


def _without(lm: LanguageModel, draw: Draw) -> Tensor:
    """The same of the rows alone: what a model that loses its prefixes computes."""
    return _outputs(lm, Batch.from_rows(Front(), draw.rows, device=lm.device))


def _outputs(lm: LanguageModel, batch: Batch) -> Tensor:
    # Not in order, so that a model which ignores the choice of rows is found out too.
    order = torch.arange(batch.starts[-1] - 1, -1, -1, device=lm.device)
    outputs = (lm.logits if lm.has_lm_head else lm.hidden_states)(batch, order)
    if len(outputs) != len(order):
        raise ValueError(f"{len(outputs)} outputs for {len(order)} tokens")
    return outputs.flip(0)


def _reference(lm: LanguageModel, draw: Draw) -> Tensor:
    """The same by Transformers alone, of the joined texts."""
    run = lm.model if lm.has_lm_head else model_body(lm.model)
    options = {"use_cache": False} if "use_cache" in signature(run.forward).parameters else {}
    outputs = []
    with eager_attention(lm.model):
        for front, row in zip(draw.fronts, draw.rows, strict=True):
            output = run(input_ids=torch.tensor([(*front, *row)], device=lm.device), **options)
            outputs.append((output.logits if lm.has_lm_head else output.last_hidden_state)[0, len(front) :])
    return torch.cat(outputs)


def _distance(found: Tensor, reference: Tensor) -> float:
    """Root mean square difference; in bfloat16 the largest difference would be one of rounding."""
    return float((found - reference).square().mean().sqrt())
