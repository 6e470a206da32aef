"""Where learning starts: initializers as functions from a length to a `Start`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from foreword.core import KVPrefix
from foreword.errors import UsageError
from foreword.models import LanguageModel


@dataclass(frozen=True, eq=False)
class Start:
    """Initial values for ``length`` virtual tokens: at most one of the sources is set, none means random.

    Attributes:
        length: virtual tokens.
        generator: source of all random numbers.
        token_ids: real tokens whose embeddings or activations are the initial values.
        prefix: another task's prefix (transfer).
    """

    length: int
    generator: torch.Generator
    token_ids: tuple[int, ...] | None = None
    prefix: KVPrefix | None = None


Initializer = Callable[[int, torch.Generator], Start]


def random_values(length: int, generator: torch.Generator) -> Start:
    """Values drawn by the method itself."""
    return Start(length, generator)


def sampled_vocabulary(lm: LanguageModel) -> Initializer:
    """Tokens drawn from the vocabulary without special ones (Lester et al. 2021, "sampled vocab")."""
    special = set(lm.tokenizer.all_special_ids)
    ordinary = torch.tensor([token for token in sorted(lm.tokenizer.get_vocab().values()) if token not in special])

    def start(length: int, generator: torch.Generator) -> Start:
        drawn = ordinary[torch.randint(len(ordinary), (length,), generator=generator)]
        return Start(length, generator, tuple(drawn.tolist()))

    return start


def text(lm: LanguageModel, source: str) -> Initializer:
    """The tokens of a text: repeated if it is too short, and its last ones if it is too long.

    The end is kept because it is what the request follows.
    """
    ids = lm.tokenizer(source, add_special_tokens=False).input_ids
    if not ids:
        raise UsageError("the text to start from has no tokens; give --init-text some words.")

    def start(length: int, generator: torch.Generator) -> Start:
        repeated = ids * -(-length // len(ids))
        return Start(length, generator, tuple(repeated[-length:]))

    return start


def transfer(prefix: KVPrefix) -> Initializer:
    """Another task's prefix, as it stands (SPoT, Vu et al. 2022)."""

    def start(length: int, generator: torch.Generator) -> Start:
        if length != prefix.length:
            raise UsageError(
                f"the task to start from has {prefix.length} virtual tokens, --length is {length}; make them equal."
            )
        return Start(length, generator, prefix=prefix)

    return start


def demonstrations(examples: Sequence[tuple[str, object]], budget: int) -> str:
    """Short solved examples joined into one text, the labels taking turns: what ``--init auto`` starts from.

    Args:
        examples: ``(text with its answer, label)``.
        budget: characters that the text should reach, if there are that many examples.
    """
    by_label: dict[object, list[str]] = {}
    for example, label in sorted(examples, key=lambda pair: len(pair[0])):
        by_label.setdefault(label, []).append(example)
    # The very shortest rows are often fragments; start a tenth of the way up.
    columns = [rows[len(rows) // 10 :] for rows in by_label.values()]
    turns = [row for turn in zip_longest(*columns) for row in turn if row is not None]
    chosen: list[str] = []
    for example in turns:
        if sum(map(len, chosen)) >= budget:
            break
        chosen.append(example)
    # Shortest last: the end of the text survives trimming.
    return "\n\n".join(reversed(chosen)) + "\n\n"
