"""Scores of labels, and log-probabilities of the prompts' own tokens, computed between the steps of generation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from foreword.core import KVPrefix
from foreword.engine.logprobs import logsumexp, token_logprob
from foreword.engine.protocol import TokenLogprob
from foreword.llamacpp.cell_allocator import CellAllocator, SequenceCells
from foreword.llamacpp.compat import Session
from foreword.llamacpp.decode import SequenceTokens, decode
from foreword.text.prompt import Prompt
from foreword.text.verbalizer import WordTrie


@dataclass(frozen=True, eq=False)
class LabelScoring:
    """Prompts whose labels are scored together.

    Attributes:
        trie: the words.
        prompts: each has one answer, behind its last token; soft tokens are float32 numpy arrays.
    """

    trie: WordTrie
    prompts: Sequence[Prompt]

    @property
    def requirements(self) -> list[tuple[int, KVPrefix | None]]:
        """Own cells and prefix of each prompt, with the inner nodes of the trie behind it."""
        return [(len(prompt.token_ids) + len(self.trie.inner_nodes), _prefix(prompt)) for prompt in self.prompts]

    @property
    def num_sequences(self) -> int:
        """One for each prompt, and one for each inner node behind it."""
        return len(self.prompts) * (1 + len(self.trie.inner_nodes))

    def run(self, session: Session, allocator: CellAllocator) -> np.ndarray:
        """``[prompts, labels]`` float32; there must be room for all."""
        trie = self.trie
        logprobs = np.empty((len(self.prompts), len(trie.tokens)), np.float32)
        cells: dict[tuple[int, int | None], SequenceCells] = {}

        def decode_nodes(inputs: dict[tuple[int, int | None], SequenceTokens]) -> None:
            """Run tokens that end at nodes of the trie, and read the log-probabilities of the nodes' children."""
            keys = list(inputs)

            def on_logits(index: int, token_index: int, logits: np.ndarray) -> None:
                row, node = keys[index]
                children = trie.children[node]
                logprobs[row, children] = logits[[trie.tokens[child] for child in children]] - logsumexp(logits)

            decode(session, list(inputs.values()), on_logits)

        try:
            inputs: dict[tuple[int, int | None], SequenceTokens] = {}
            for row, prompt in enumerate(self.prompts):
                length = len(prompt.token_ids)
                cells[row, None] = own = _allocate(allocator, prompt, length)
                inputs[row, None] = _sequence_tokens(prompt, own, length, (length - 1,))
            decode_nodes(inputs)
            for depth, nodes in enumerate(self._levels()):
                inputs = {}
                for row, prompt in enumerate(self.prompts):
                    position = prompt.prefix_length + len(prompt.token_ids) + depth
                    for node in nodes:
                        parent = cells[row, trie.parents[node]]
                        cells[row, node] = own = allocator.fork(parent, position, 1)
                        inputs[row, node] = SequenceTokens(
                            own.seq_id, position, (trie.tokens[node],), output_indices=(0,)
                        )
                decode_nodes(inputs)
        finally:
            for each in cells.values():
                allocator.free_cells(each)
        return _label_scores(trie, logprobs)

    def _levels(self) -> Iterator[list[int]]:
        """Inner nodes of the trie, those of one depth together."""
        nodes = self.trie.children[None]
        while inner := [node for node in nodes if node in self.trie.children]:
            yield inner
            nodes = [child for node in inner for child in self.trie.children[node]]


@dataclass(frozen=True, eq=False)
class PromptScoring:
    """A prompt whose own tokens are scored.

    Attributes:
        prompt: with at least one output index, whose next token is scored; soft tokens are a float32 numpy array.
        top: how many of the most probable tokens are read, too.
        num_sequences: that it takes.
    """

    prompt: Prompt
    top: int
    num_sequences: ClassVar[int] = 1

    @property
    def requirements(self) -> list[tuple[int, KVPrefix | None]]:
        """Own cells of the prompt, and its prefix."""
        return [(self._num_run, _prefix(self.prompt))]

    def run(self, session: Session, allocator: CellAllocator) -> list[TokenLogprob]:
        """Log-probabilities of the token behind each output index; there must be room."""
        ids, logprobs = self.prompt.token_ids, list[TokenLogprob]()

        def on_logits(index: int, token_index: int, logits: np.ndarray) -> None:
            logprobs.append(token_logprob(logits, ids[token_index + 1], self.top))

        cells = _allocate(allocator, self.prompt, self._num_run)
        try:
            outputs = frozenset(self.prompt.output_indices)
            decode(session, [_sequence_tokens(self.prompt, cells, self._num_run, outputs)], on_logits)
        finally:
            allocator.free_cells(cells)
        return logprobs

    @property
    def _num_run(self) -> int:
        """Tokens up to the last output index: the one behind it is predicted and never run."""
        return self.prompt.output_indices[-1] + 1


def make_batches(
    trie: WordTrie, prompts: Sequence[Prompt], *, max_tokens: int, max_cells: int, max_sequences: int
) -> Iterator[tuple[list[int], LabelScoring]]:
    """Divide prompts into batches, those behind the same prefix next to each other, by their lengths.

    Args:
        max_tokens: of a batch; a longer prompt is a batch of its own.
        max_cells: of the cache for a batch, its prefixes included.
        max_sequences: of a batch.

    Yields: the indices of a batch's prompts, and the batch.
    """

    def batch(indices: list[int]) -> LabelScoring:
        return LabelScoring(trie, [prompts[index] for index in indices])

    def fits(scoring: LabelScoring) -> bool:
        own = sum(tokens for tokens, _ in scoring.requirements)
        lengths = {prefix.digest: prefix.length for _, prefix in scoring.requirements if prefix is not None}
        num_sequences = scoring.num_sequences + len(lengths)
        return own <= max_tokens and own + sum(lengths.values()) <= max_cells and num_sequences <= max_sequences

    indices: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda i: (id(_prefix(prompts[i])), len(prompts[i].token_ids))):
        if indices and not fits(batch([*indices, index])):
            yield indices, batch(indices)
            indices = []
        indices.append(index)
    if indices:
        yield indices, batch(indices)


def _label_scores(trie: WordTrie, logprobs: np.ndarray) -> np.ndarray:
    """``[N, nodes]`` -> ``[N, labels]``: `WordTrie.label_scores` without PyTorch."""
    scores = np.full((len(logprobs), trie.num_labels), -np.inf, np.float32)
    for label, path in trie.words:
        scores[:, label] = np.logaddexp(scores[:, label], logprobs[:, list(path)].sum(1))
    return scores


def _allocate(allocator: CellAllocator, prompt: Prompt, num_cells: int) -> SequenceCells:
    cells = allocator.allocate_cells(num_cells, prompt.prefix, prompt.prefix_length)
    assert cells is not None
    return cells


def _sequence_tokens(
    prompt: Prompt, cells: SequenceCells, num_run: int, output_indices: Collection[int]
) -> SequenceTokens:
    soft: Any = prompt.soft
    return SequenceTokens(cells.seq_id, prompt.prefix_length, prompt.token_ids[:num_run], soft, output_indices)


def _prefix(prompt: Prompt) -> KVPrefix | None:
    return prompt.prefix if prompt.prefix_length else None
