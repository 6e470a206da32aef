"""`LabelScorer`: the forward batch that scores the labels of encoded examples, and scores from its outputs.

Labels are scored by the words of a verbalizer (`WordScorer`, `MaskScorer`) or by a linear head (`HeadScorer`). Training
and every PyTorch engine use the same scorer, so what is learned is what is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Protocol

from foreword.core import Batch, Front, Head
from foreword.errors import TemplateError
from foreword.text.encoded_example import EncodedExample
from foreword.text.ragged import make_batch
from foreword.text.verbalizer import Verbalizer, WordTrie

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class LabelScorer(Protocol):
    """Scores the labels of encoded examples.

    Attributes:
        uses_hidden_states: scores are made from final hidden states, not from logits.
        num_labels: how many labels there are.
        max_extra_tokens: tokens that its rows have at most beyond the example itself.
    """

    uses_hidden_states: ClassVar[bool]

    @property
    def num_labels(self) -> int: ...

    @property
    def max_extra_tokens(self) -> int: ...

    def num_tokens(self, example: EncodedExample) -> int:
        """Tokens that the example takes in a batch."""
        ...

    def make_batch(
        self, front: Front, examples: Sequence[EncodedExample], device: torch.device | str | None = None
    ) -> tuple[Batch, torch.Tensor]:
        """The batch, and the indices ``[K]`` of the tokens whose outputs `scores` takes."""
        ...

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """Label scores ``[outputs, labels]``, float32 or wider, from the outputs at the indices that `make_batch` gave.

        An example has one row for each of its ``output_indices``: one, or in token classification one a word.
        """
        ...


@dataclass(frozen=True)
class WordScorer:
    """Scores the words of a verbalizer as continuations of an example, in one token trie, for causal models."""

    uses_hidden_states: ClassVar[bool] = False
    trie: WordTrie

    @property
    def num_labels(self) -> int:
        return self.trie.num_labels

    @property
    def max_extra_tokens(self) -> int:
        return max(len(path) for _, path in self.trie.words)

    def num_tokens(self, example: EncodedExample) -> int:
        return len(example.token_ids) + len(self.trie.inner_nodes)

    def make_batch(
        self, front: Front, examples: Sequence[EncodedExample], device: torch.device | str | None = None
    ) -> tuple[Batch, torch.Tensor]:
        """Each example once, and behind it one row for every inner node of the trie.

        The indices are ``[examples * (1 + inner nodes)]``: of every example its last token, then its inner nodes.
        """
        import torch

        rows: list[Sequence[int]] = []
        parents: list[int | None] = []
        for example in examples:
            at: dict[int | None, int] = {None: len(rows)}
            rows.append(example.token_ids)
            parents.append(None)
            for node in self.trie.inner_nodes:
                at[node] = len(rows)
                rows.append((self.trie.tokens[node],))
                parents.append(at[self.trie.parents[node]])
        batch = Batch.from_rows(front, rows, parents, device)
        return batch, torch.tensor(batch.starts[len(batch.starts) - len(rows) :], device=device) - 1

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """``logsumexp`` over a label's words of the sum of their tokens' log-probabilities.

        Args:
            outputs: logits ``[examples * (1 + inner nodes), vocab]``.
        """
        import torch

        trie = self.trie
        slots: dict[int | None, int] = {None: 0} | {node: 1 + index for index, node in enumerate(trie.inner_nodes)}
        rows = outputs.unflatten(0, (-1, len(slots)))
        above = torch.tensor([slots[parent] for parent in trie.parents], device=outputs.device)
        tokens = torch.tensor(trie.tokens, device=outputs.device)
        # Only the nodes' own logits are normalized: a log-softmax would be one more copy of the whole vocabulary.
        wide = torch.promote_types(outputs.dtype, torch.float32)
        norms = rows.to(wide).logsumexp(-1)
        return trie.label_scores(rows[:, above, tokens].to(wide) - norms[:, above])


@dataclass(frozen=True)
class MaskScorer:
    """Scores the words of a verbalizer at the mask of a masked model; a word of ``n`` tokens takes ``n`` masks.

    All tokens of a word are predicted at once, as in PET (Schick and Schütze 2021, arXiv:2009.07118, section 3.1).

    Attributes:
        words: label index and tokens of every word.
        num_labels: how many labels there are.
    """

    uses_hidden_states: ClassVar[bool] = False
    words: tuple[tuple[int, tuple[int, ...]], ...]
    num_labels: int

    @property
    def max_extra_tokens(self) -> int:
        return self._lengths[-1] - 1

    def num_tokens(self, example: EncodedExample) -> int:
        return sum(len(example.token_ids) + length - 1 for length in self._lengths)

    def make_batch(
        self, front: Front, examples: Sequence[EncodedExample], device: torch.device | str | None = None
    ) -> tuple[Batch, torch.Tensor]:
        """Each example once for every number of tokens that a word has, with as many masks."""
        import torch

        rows, masks = [], []
        for example in examples:
            (mask,) = example.output_indices
            ids = example.token_ids
            for length in self._lengths:
                rows.append((*ids[:mask], *(ids[mask],) * length, *ids[mask + 1 :]))
                masks.append(range(mask, mask + length))
        batch = Batch.from_rows(front, rows, device=device)
        starts = batch.starts[len(batch.lengths) - len(rows) :]
        indices = [start + at for start, group in zip(starts, masks, strict=False) for at in group]
        return batch, torch.tensor(indices, device=device)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """See `WordScorer.scores`; ``outputs`` are the logits of all masks."""
        import torch

        wide = torch.promote_types(outputs.dtype, torch.float32)
        rows = outputs.unflatten(0, (-1, sum(self._lengths))).to(wide)
        rows = rows - rows.logsumexp(-1, keepdim=True)
        labels = []
        for label in range(self.num_labels):
            found = [self._word(rows, tokens) for owner, tokens in self.words if owner == label]
            labels.append(torch.stack(found, -1).logsumexp(-1))
        return torch.stack(labels, -1)

    def _word(self, rows: torch.Tensor, tokens: tuple[int, ...]) -> torch.Tensor:
        import torch

        first = sum(length for length in self._lengths if length < len(tokens))
        at = torch.arange(first, first + len(tokens), device=rows.device)
        return rows[:, at, torch.tensor(tokens, device=rows.device)].sum(-1)

    @cached_property
    def _lengths(self) -> tuple[int, ...]:
        return tuple(sorted({len(tokens) for _, tokens in self.words}))


@dataclass(frozen=True, eq=False)
class HeadScorer:
    """Scores labels by a linear layer over the hidden states at an example's ``output_indices``.

    Attributes:
        weight: ``[labels, hidden]``.
        bias: ``[labels]``.
    """

    uses_hidden_states: ClassVar[bool] = True
    weight: torch.Tensor
    bias: torch.Tensor

    @property
    def num_labels(self) -> int:
        return int(self.weight.shape[0])

    @property
    def max_extra_tokens(self) -> int:
        return 0

    def num_tokens(self, example: EncodedExample) -> int:
        return len(example.token_ids)

    def make_batch(
        self, front: Front, examples: Sequence[EncodedExample], device: torch.device | str | None = None
    ) -> tuple[Batch, torch.Tensor]:
        """Each example once; the indices are its ``output_indices``."""
        return make_batch(front, examples, device)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """Logits of the labels; ``outputs`` are hidden states ``[outputs, hidden]``."""
        import torch

        wide = torch.promote_types(outputs.dtype, torch.float32)
        weight, bias = (t.to(dtype=wide, device=outputs.device) for t in (self.weight, self.bias))
        return torch.nn.functional.linear(outputs.to(wide), weight, bias)


def word_scorer(
    tokenizer: PreTrainedTokenizerBase,
    verbalizer: Verbalizer,
    after: str,
    *,
    causal: bool,
    is_encoder_decoder: bool = False,
) -> WordScorer | MaskScorer:
    """A scorer of a verbalizer's words as they continue ``after``, the literal text before ``{mask}``.

    The decoder of an encoder-decoder begins with the word, so there ``after`` does not count.

    Raises VerbalizerError if two labels share a token sequence, TemplateError if a word merges with ``after``.
    """
    if causal or is_encoder_decoder:
        return WordScorer(verbalizer.build_trie(tokenizer, None if is_encoder_decoder else after))
    words = verbalizer.token_sequences(tokenizer, after)
    return MaskScorer(tuple((label, tokens) for tokens, label in words.items()), len(verbalizer.words))


def head_scorer(head: Head) -> HeadScorer:
    """The scorer of a stored head. Raises TemplateError for one whose labels and rows differ."""
    if head.weight.shape[0] != len(head.labels) or head.bias.shape[0] != len(head.labels):
        raise TemplateError(f"the head has {len(head.weight)} rows for {len(head.labels)} labels; publish it again.")
    return HeadScorer(head.weight, head.bias)
