"""The support probe: a model is supported if a prefix gives it the outputs of the joined text, whatever its name.

Run once at load, for every way in which a model may carry prefixes. A way brings a `LanguageModel` whose `logits` (or
`hidden_states`, without an output matrix) answer rows behind prefixes, and through which `prefix_left_by` makes these.
The reference is always Transformers' own eager forward of the joined texts, one at a time and without a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor

from foreword.core import Batch, Front, KVPrefix
from foreword.errors import UnsupportedModel
from foreword.models.activations import activations
from foreword.models.attention_implementation import eager_attention
from foreword.models.language_model import LanguageModel, model_body
from foreword.models.proof import Proof

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
# Share of a prefix's effect that may be lost to rounding, in units of the dtype's own precision. SmolLM2 loses 5 in
# bfloat16 and float16 and 16 in float32, where a floor is put: less than a thousandth is rounding in any model.
TOLERANCE = 24.0
FLOOR = 1e-3
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
        UnsupportedModel: the outputs differ by more than rounding, or some are not finite, or a forward fails.
    """
    name = type(lm.model).__name__
    try:
        draw = Draw.of(*(text_ids(lm, text, LONG_FRONT + LONG_ROW) for text in TEXTS[:2]))
        reference, found, without = _reference(lm, draw), _found(lm, draw), _without(lm, draw)
    except FORWARD_ERRORS as error:
        raise UnsupportedModel(f"{name} cannot carry a prefix: its forward failed with {error!r}.") from error
    precision = torch.finfo(reference.dtype).eps
    difference, effect = _distance(found, reference), _distance(without, found)
    rounding = 4 * precision * float(reference.float().square().mean().sqrt())
    proof = Proof(difference, effect, max(max(TOLERANCE * precision, FLOOR) * effect, rounding), 1)
    if not difference <= proof.tolerance:
        raise UnsupportedModel(
            f"{name} does not give the same logits with text as a prefix as with the joined text: they differ by "
            f"{difference:.3g}, where leaving the prefix out changes them by {effect:.3g}."
        )
    return proof


def prefix_left_by(lm: LanguageModel, front: Sequence[int], row: Sequence[int]) -> KVPrefix:
    """The prefix with which ``row`` must give the outputs that it has behind ``front`` in the joined text.

    For a causal model it is what the front alone leaves (`activations`). In a model that reads in both directions the
    front sees the row too: there it is the keys and values at the front's positions in the joined run, from which the
    row's outputs follow layer by layer.
    """
    if lm.causal:
        return activations(lm, front)
    return lm.kept(Batch.from_rows(Front(), [(*front, *row)], device=lm.device), len(front))


def text_ids(lm: LanguageModel, text: str, count: int) -> list[int]:
    """The first ``count`` tokens of a text; of a tokenizer that cannot write it, ordinary words of its vocabulary."""
    rows = lm.identity.vocab_size
    ids = list(lm.tokenizer(text)["input_ids"])[:count]
    unknown = getattr(lm.tokenizer, "unk_token_id", None)
    if len(ids) == count and max(ids) < rows and ids.count(unknown) <= 1:
        return ids
    special = set(getattr(lm.tokenizer, "all_special_ids", None) or ())
    ordinary = [token for token in range(rows) if token not in special] or list(range(rows))
    first = len(text)
    return [ordinary[(first + len(ordinary) // 3 + step * 7919) % len(ordinary)] for step in range(count)]


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
    return float((found.float() - reference.float()).square().mean().sqrt())
