"""`Verbalizer`: the words of every label; `WordTrie`: their tokens, and label scores from log-probabilities.

All words share one prompt in a token trie, so a label may have several words of several tokens and the prompt is
still run once. Training takes the cross-entropy of the same scores that serving ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.core.json_reader import read_document, read_json
from foreword.core.token_rows import check_token_ids
from foreword.errors import VerbalizerError
from foreword.text import seam
from foreword.text.row import Row

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_EXAMPLE = '{"positive": " great", "negative": [" bad", " awful"]}'


@dataclass(frozen=True)
class Verbalizer:
    """Words of every label, in the order of the labels; words are taken verbatim, spaces included.

    >>> foreword.Verbalizer.parse({"good": [" great", " fine"], "bad": " awful"}).labels
    ('good', 'bad')
    """

    words: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if len(self.words) < 2:
            raise VerbalizerError(f"a verbalizer needs at least 2 labels, got {len(self.words)}; add the others.")
        owners: dict[str, str] = {}
        for label, words in self.words.items():
            _check_words(label, words)
            for word in words:
                if owners.setdefault(word, label) != label:
                    raise VerbalizerError(
                        f"word {word!r} stands for both '{owners[word]}' and '{label}'; give it to one label only."
                    )

    @classmethod
    def parse(cls, source: str | Mapping[str, object]) -> Verbalizer:
        """Read a verbalizer from a mapping, from JSON text, or from the JSON file at a path.

        Raises VerbalizerError for anything but an object of labels, each with a word or a list of words.
        """
        data = _read_source(source) if isinstance(source, str) else source
        if not isinstance(data, Mapping):
            raise VerbalizerError(f"a verbalizer is an object of labels and words; write it as {_EXAMPLE}.")
        return cls({str(label): _as_words(str(label), words) for label, words in data.items()})

    @classmethod
    def from_labels(cls, labels: Sequence[str]) -> Verbalizer:
        """Every label's name as its word, with the space that parts it from the text before it."""
        twice = next((label for label, count in Counter(labels).items() if count > 1), None)
        if twice is not None:
            raise VerbalizerError(f"label '{twice}' is given twice; name every label once.")
        return cls({label: (f" {label}",) for label in labels})

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of their scores."""
        return tuple(self.words)

    def index(self, label: str, where: str = "") -> int:
        """Index of a label. Raises VerbalizerError that begins with ``where`` if there is no such label."""
        if label in self.words:
            return self.labels.index(label)
        near = get_close_matches(label, self.labels, n=1)
        mend = f"did you mean '{near[0]}'?" if near else "add it to the verbalizer, or correct the row."
        shown = ", ".join(self.labels[:12]) + (", ..." if len(self.labels) > 12 else "")
        at = f"{where}: " if where else ""
        raise VerbalizerError(f"{at}label '{label}' is not in the verbalizer (labels: {shown}); {mend}")

    def check_token_rows(self, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
        """Raise RequestError for a word with a token beyond the ``rows`` of the model's embedding."""
        for label, words in self.words.items():
            for word in words:
                with Row({}, f"word {word!r} of label {label!r}").error_context():
                    check_token_ids(tokenizer, rows, seam.encode(tokenizer, word, bos=False))

    def build_trie(self, tokenizer: PreTrainedTokenizerBase, after: str | None) -> WordTrie:
        """The words as a token trie behind ``after``, the literal text before ``{mask}``; raises as `tokens` does."""
        words = [(label, tokens) for tokens, label in self.token_sequences(tokenizer, after).items()]
        return WordTrie.build(words, len(self.words))

    def token_sequences(self, tokenizer: PreTrainedTokenizerBase, after: str | None) -> dict[tuple[int, ...], int]:
        """Label index of every token sequence that is a word where it continues ``after``, or where it begins a text of
        its own (``None``).

        Raises VerbalizerError if two labels share a token sequence, TemplateError if a word merges with
        ``after``.
        """
        owners: dict[tuple[int, ...], int] = {}
        for index, (label, words) in enumerate(self.words.items()):
            for word in words:
                tokens = tuple(seam.answer_ids(tokenizer, word, after))
                if not tokens:
                    raise VerbalizerError(f"word {word!r} of label '{label}' has no tokens; choose another word.")
                # Two spellings of one token sequence under one label are one word, not twice its probability.
                if owners.setdefault(tokens, index) != index:
                    raise VerbalizerError(
                        f"word {word!r} of label '{label}' has the same tokens as a word of "
                        f"'{self.labels[owners[tokens]]}', so the model cannot tell them apart; choose "
                        "another word."
                    )
        return owners


@dataclass(frozen=True)
class WordTrie:
    """Token trie of all words behind one prompt. A node may both end a word and go on to a longer one.

    Attributes:
        tokens: token id of every node.
        parents: the node that it continues, always an earlier one; ``None`` continues the prompt itself.
        words: label index and path of nodes, root to leaf, of every word.
        inner: nodes with children: exactly these are run through the model to score the nodes below, each as
            a one-token row that continues its parent's row.
        labels: how many labels there are.
    """

    tokens: tuple[int, ...]
    parents: tuple[int | None, ...]
    words: tuple[tuple[int, tuple[int, ...]], ...]
    inner_nodes: tuple[int, ...]
    num_labels: int

    @classmethod
    def build(cls, words: Sequence[tuple[int, Sequence[int]]], labels: int) -> WordTrie:
        """Hang words, as label index and token ids, into one trie."""
        nodes: dict[tuple[int | None, int], int] = {}
        paths: list[tuple[int, tuple[int, ...]]] = []
        for label, tokens in words:
            path: list[int] = []
            for token in tokens:
                parent = path[-1] if path else None
                path.append(nodes.setdefault((parent, token), len(nodes)))
            paths.append((label, tuple(path)))
        parents = tuple(parent for parent, _ in nodes)
        inner = tuple(sorted({parent for parent in parents if parent is not None}))
        return cls(tuple(token for _, token in nodes), parents, tuple(paths), inner, labels)

    @cached_property
    def children(self) -> dict[int | None, list[int]]:
        """Child nodes of the prompt (``None``) and of every inner node."""
        children: dict[int | None, list[int]] = {}
        for node, parent in enumerate(self.parents):
            children.setdefault(parent, []).append(node)
        return children

    def label_scores(self, node_logprobs: torch.Tensor) -> torch.Tensor:
        """Score of every label: ``logsumexp`` over its words of the sum of their tokens' log-probabilities.

        Args:
            node_logprobs: ``[..., nodes]``, log-probability of every node's token given its parent.

        Returns:
            ``[..., labels]``, in the same dtype.
        """
        import torch

        # Padding points one place past the end: at a zero for sums, at minus infinity for logsumexp. A
        # product with a 0/1 matrix would be shorter, but one log-probability of minus infinity makes it NaN.
        paths = torch.tensor(self._paths, device=node_logprobs.device)
        groups = torch.tensor(self._groups, device=node_logprobs.device)
        one = node_logprobs.new_zeros(*node_logprobs.shape[:-1], 1)
        words = torch.cat((node_logprobs, one), dim=-1)[..., paths].sum(dim=-1)
        return torch.cat((words, one - torch.inf), dim=-1)[..., groups].logsumexp(dim=-1)

    @cached_property
    def _paths(self) -> list[list[int]]:
        """``[words, longest word]`` nodes, padded with the number of nodes."""
        return _padded([path for _, path in self.words], len(self.tokens))

    @cached_property
    def _groups(self) -> list[list[int]]:
        """``[labels, most words]`` indices into ``words``, padded with the number of words."""
        groups: list[list[int]] = [[] for _ in range(self.num_labels)]
        for index, (label, _) in enumerate(self.words):
            groups[label].append(index)
        return _padded(groups, len(self.words))


def _padded(rows: Sequence[Sequence[int]], fill: int) -> list[list[int]]:
    width = max(map(len, rows))
    return [[*row, *[fill] * (width - len(row))] for row in rows]


def _check_words(label: str, words: tuple[str, ...]) -> None:
    if not words:
        raise VerbalizerError(f"label '{label}' has no words; give it at least one, as in {_EXAMPLE}.")
    for word in words:
        if not isinstance(word, str):
            raise VerbalizerError(f"label '{label}' has {word!r} for a word; words are strings, so put it in quotes.")
        if not word:
            raise VerbalizerError(f"label '{label}' has an empty word; give it at least one character.")


def _as_words(label: str, words: object) -> tuple[str, ...]:
    if isinstance(words, str):
        return (words,)
    if isinstance(words, list | tuple):
        return tuple(words)
    raise VerbalizerError(f"label '{label}' has {words!r} for words; write a string or a list of strings.")


def _read_source(source: str) -> object:
    if source.lstrip()[:1] in ("{", "["):
        return _parse_json(source, "the verbalizer")
    try:
        text = read_document(Path(source))
    except (OSError, ValueError) as error:
        raise VerbalizerError(
            f"the verbalizer {source[:60]!r} is neither JSON text nor a readable file ({_os_reason(error)}); "
            f"write it as {_EXAMPLE}, or name a JSON file."
        ) from None
    return _parse_json(text, f"verbalizer {source}")


def _os_reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _parse_json(text: str | bytes, what: str) -> object:
    mend = f"write it as {_EXAMPLE}, all words of a label in one list"
    return read_json(text, what, error=VerbalizerError, mend=mend, unique=True)
