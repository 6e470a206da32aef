"""Solved examples as one text, from which a prompt may start."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest


def demonstrations(examples: Sequence[tuple[str, object]], budget: int) -> str:
    """Short labelled examples joined into one text, the labels taking turns: the text of ``--init auto``.

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
