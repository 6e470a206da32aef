"""`StopText`: looks for one stop text in an answer that comes in pieces, in time linear in the answer."""

from __future__ import annotations

from functools import lru_cache


class StopText:
    """The automaton of Knuth, Morris and Pratt (1977), carried from piece to piece.

    One for each stop text, and not one of Aho and Corasick for all: few texts are given, and a list of numbers takes a
    hundredth of the memory of a trie in Python.

    Attributes:
        text: that ends the answer.
        depth: characters at the end of the answer so far that begin the text, less than all of it.
    """

    def __init__(self, text: str) -> None:
        self.text, self.depth = text, 0
        self._borders = _borders(text)

    def push(self, piece: str, *, ends: bool = True) -> int | None:
        """Characters of a further piece after which the text is complete for the first time; ``None`` if it is not.

        Args:
            ends: false only follows the answer, past texts that are complete.
        """
        text, borders, depth = self.text, self._borders, self.depth
        at = -1
        while (at := at + 1) < len(piece):
            if not depth and (at := piece.find(text[0], at)) < 0:
                break
            while depth and text[depth] != piece[at]:
                depth = borders[depth]
            depth += text[depth] == piece[at]
            if depth == len(text):
                depth = borders[depth]
                if ends:
                    self.depth = depth
                    return at + 1
        self.depth = depth
        return None


@lru_cache(maxsize=64)
def _borders(text: str) -> tuple[int, ...]:
    """For every length of a beginning of ``text``, the longest shorter beginning that it also ends with."""
    borders, border = [0, 0], 0
    for character in text[1:]:
        while border and text[border] != character:
            border = borders[border]
        border += text[border] == character
        borders.append(border)
    return tuple(borders)
