"""What is read of prompts without generating: scores of labels, and log-probabilities of the prompts' own tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from foreword.core import KVPrefix
from foreword.engine.logprobs import logsumexp, token_logprob
from foreword.engine.protocol import TokenLogprob
from foreword.llamacpp.cell_allocator import CellAllocator, SequenceCells
from foreword.llamacpp.compat import Session
from foreword.llamacpp.decode import DecodeRun, Read, run
from foreword.text.request import Prompt
from foreword.text.verbalizer import WordTrie


@dataclass(frozen=True, eq=False)
class LabelScoring:
    """Some prompts whose labels are scored together.

    Attributes:
        trie: the words.
        prompts: each has one answer, behind its last token.
        softs: the soft tokens of each as float32, or ``None``.
    """

    trie: WordTrie
    prompts: Sequence[Prompt]
    softs: Sequence[np.ndarray | None]

    @property
    def wanted(self) -> list[tuple[int, KVPrefix | None]]:
        """Own cells and prefix of each prompt, the words behind it included."""
        return [(len(p.token_ids) + len(self.trie.inner), _prefix(p)) for p in self.prompts]

    @property
    def numbers(self) -> int:
        """Sequences that they take."""
        return len(self.prompts) * (1 + len(self.trie.inner))

    def scores(self, session: Session, cells: CellAllocator) -> np.ndarray:
        """``[prompts, labels]`` float32; there must be room for all."""
        trie = self.trie
        below: dict[int | None, list[int]] = {}
        for node, parent in enumerate(trie.parents):
            below.setdefault(parent, []).append(node)
        found = np.empty((len(self.prompts), len(trie.tokens)), np.float32)
        held: dict[tuple[int, int | None], SequenceCells] = {}

        def read(which: Sequence[tuple[int, int | None]]) -> Read:
            def keep(number: int, place: int, row: np.ndarray) -> None:
                prompt, node = which[number]
                nodes = below[node]
                found[prompt, nodes] = row[[trie.tokens[each] for each in nodes]] - logsumexp(row)

            return keep

        try:
            for number, prompt in enumerate(self.prompts):
                holding = cells.take(len(prompt.token_ids), prompt.prefix, prompt.prefix_length)
                assert holding is not None
                held[number, None] = holding
            asked = [
                DecodeRun(held[n, None].number, p.prefix_length, p.token_ids, soft, {len(p.token_ids) - 1})
                for n, (p, soft) in enumerate(zip(self.prompts, self.softs, strict=True))
            ]
            run(session, asked, read([(n, None) for n in range(len(asked))]))
            for depth, nodes in enumerate(self._levels()):
                which, asked = [], []
                for number, prompt in enumerate(self.prompts):
                    end = prompt.prefix_length + len(prompt.token_ids) + depth
                    for node in nodes:
                        above = held[number, trie.parents[node]]
                        held[number, node] = holding = cells.branch(above, end, 1)
                        which.append((number, node))
                        asked.append(DecodeRun(holding.number, end, (trie.tokens[node],), wanted={0}))
                run(session, asked, read(which))
        finally:
            for holding in held.values():
                cells.give_back(holding)
        return label_scores(trie, found)

    def _levels(self) -> Iterator[list[int]]:
        """Inner nodes of the trie, those of one depth together."""
        depths: dict[int | None, int] = {None: -1}
        for node, parent in enumerate(self.trie.parents):
            depths[node] = depths[parent] + 1
        for depth in sorted({depths[node] for node in self.trie.inner}):
            yield [node for node in self.trie.inner if depths[node] == depth]


@dataclass(frozen=True, eq=False)
class PromptScoring:
    """A prompt whose own tokens are looked at.

    Attributes:
        prompt: with the places whose next tokens are measured.
        soft: its soft tokens as float32, or ``None``.
        top: how many of the most probable tokens are read, too.
    """

    prompt: Prompt
    soft: np.ndarray | None
    top: int

    @property
    def wanted(self) -> list[tuple[int, KVPrefix | None]]:
        return [(self._end, _prefix(self.prompt))]

    def logprobs(self, session: Session, cells: CellAllocator) -> list[TokenLogprob]:
        """Of the token behind each place; there must be room."""
        ids, found = self.prompt.token_ids, list[TokenLogprob]()

        def read(number: int, place: int, row: np.ndarray) -> None:
            found.append(token_logprob(row, ids[place + 1], self.top))

        holding = cells.take(self._end, self.prompt.prefix, self.prompt.prefix_length)
        assert holding is not None
        try:
            wanted = frozenset(self.prompt.places)
            run(
                session,
                [DecodeRun(holding.number, self.prompt.prefix_length, ids[: self._end], self.soft, wanted)],
                read,
            )
        finally:
            cells.give_back(holding)
        return found

    @property
    def _end(self) -> int:
        """What stands behind the last place is predicted and never run."""
        return self.prompt.places[-1] + 1


def label_scores(trie: WordTrie, logprobs: np.ndarray) -> np.ndarray:
    """``[N, nodes]`` -> ``[N, labels]``; see `WordTrie.label_scores`, which does it in PyTorch."""
    found = np.full((len(logprobs), trie.labels), -np.inf, np.float32)
    for label, path in trie.words:
        found[:, label] = np.logaddexp(found[:, label], logprobs[:, list(path)].sum(1))
    return found


def pieces(
    trie: WordTrie, prompts: Sequence[Prompt], softs: Sequence[np.ndarray | None], rows: int, cells: int, numbers: int
) -> Iterator[tuple[list[int], LabelScoring]]:
    """Prompts in parts, those behind one prefix together, each with the prompts' places among all.

    Args:
        rows: tokens of a part at most; a longer prompt is a part of its own.
        cells: what a part takes of the cache at most, its prefixes included.
        numbers: sequences of a part at most.
    """
    order = sorted(range(len(prompts)), key=lambda i: (id(_prefix(prompts[i])), len(prompts[i].token_ids)))
    part: list[int] = []
    for place in order:
        if part and not _fits(_scoring(trie, prompts, softs, [*part, place]), rows, cells, numbers):
            yield part, _scoring(trie, prompts, softs, part)
            part = []
        part.append(place)
    if part:
        yield part, _scoring(trie, prompts, softs, part)


def _fits(scoring: LabelScoring, rows: int, cells: int, numbers: int) -> bool:
    own = sum(tokens for tokens, _ in scoring.wanted)
    prefixes = {prefix.digest: prefix.length for _, prefix in scoring.wanted if prefix is not None}
    return own <= rows and own + sum(prefixes.values()) <= cells and scoring.numbers + len(prefixes) <= numbers


def _scoring(
    trie: WordTrie, prompts: Sequence[Prompt], softs: Sequence[np.ndarray | None], places: Sequence[int]
) -> LabelScoring:
    return LabelScoring(trie, [prompts[place] for place in places], [softs[place] for place in places])


def _prefix(prompt: Prompt) -> KVPrefix | None:
    return prompt.prefix if prompt.prefix_length else None
