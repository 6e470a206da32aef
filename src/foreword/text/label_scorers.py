"""Choices: how labels are scored behind questions, as one ragged batch and what its outputs mean.

Training and every PyTorch engine go through the same choice, so that what is learned is what is served.
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
    """A way to score labels.

    Attributes:
        hidden: it reads final hidden states, not logits.
        labels: how many labels there are.
        longest: tokens that a question grows by at most.
    """

    uses_hidden_states: ClassVar[bool]

    @property
    def num_labels(self) -> int: ...

    @property
    def max_extra_tokens(self) -> int: ...

    def num_tokens(self, example: EncodedExample) -> int:
        """Tokens that the question takes in a batch."""
        ...

    def make_batch(
        self, front: Front, examples: Sequence[EncodedExample], device: torch.device | str | None = None
    ) -> tuple[Batch, torch.Tensor]:
        """The batch, and the places in it whose outputs `scores` needs."""
        ...

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """``[answers, labels]`` float32 from the outputs at those places; a question has an answer for each of its
        places."""
        ...


@dataclass(frozen=True)
class WordScorer:
    """The words of a verbalizer behind each question of a causal model, as one token trie."""

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
        """Each question once, and behind it one row for every inner node of the trie.

        The places are ``[questions * (1 + inner)]``: for every question its last token, then its inner nodes.
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
            outputs: logits ``[questions * (1 + inner), vocab]``.
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
    """The words of a verbalizer at the mask of a masked model; a word of ``n`` tokens stands at ``n`` masks.

    All tokens of a word are predicted at once, as in PET (Schick and Schütze 2021, arXiv:2009.07118, section 3.1).

    Attributes:
        words: label index and tokens of every word.
        labels: how many labels there are.
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
        """Each question once for every length of a word, with as many masks."""
        import torch

        rows, masks = [], []
        for example in examples:
            (place,) = example.output_indices
            ids = example.token_ids
            for length in self._lengths:
                rows.append((*ids[:place], *(ids[place],) * length, *ids[place + 1 :]))
                masks.append(range(place, place + length))
        batch = Batch.from_rows(front, rows, device=device)
        starts = batch.starts[len(batch.lengths) - len(rows) :]
        places = [start + at for start, group in zip(starts, masks, strict=False) for at in group]
        return batch, torch.tensor(places, device=device)

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
    """A linear layer over the hidden state of every place of a question.

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
        """Each question once; all its places."""
        return make_batch(front, examples, device)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """Logits of the labels; ``outputs`` are hidden states ``[answers, hidden]``."""
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
    """The words of a verbalizer, as they continue ``after``, the literal text before ``{mask}``.

    The decoder of an encoder-decoder writes them on their own, behind the whole text.

    Raises VerbalizerError if two labels share a token sequence, TemplateError if a word merges with ``after``.
    """
    if causal or is_encoder_decoder:
        return WordScorer(verbalizer.build_trie(tokenizer, None if is_encoder_decoder else after))
    words = verbalizer.token_sequences(tokenizer, after)
    return MaskScorer(tuple((label, tokens) for tokens, label in words.items()), len(verbalizer.words))


def head_scorer(head: Head) -> HeadScorer:
    """The scores of a stored head. Raises TemplateError for one whose labels and rows differ."""
    if head.weight.shape[0] != len(head.labels) or head.bias.shape[0] != len(head.labels):
        raise TemplateError(f"the head has {len(head.weight)} rows for {len(head.labels)} labels; publish it again.")
    return HeadScorer(head.weight, head.bias)
