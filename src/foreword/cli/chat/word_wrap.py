"""`WordWrap`: a streamed text in lines that break between words, as wide as the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from rich.cells import cell_len


class WordWrap:
    """Text goes in by pieces; what may be shown comes out, without the word that has not ended.

    Args:
        width: columns of the terminal now; by default asked for at every word.
    """

    def __init__(self, width: Callable[[], int] = lambda: shutil.get_terminal_size().columns) -> None:
        self._width = width
        self._column = 0
        self._space = self._word = ""

    def add(self, text: str) -> str:
        return "".join(map(self._add_character, text))

    def end(self) -> str:
        """The last word."""
        return self._place_word()

    def _add_character(self, character: str) -> str:
        if character == "\n":
            shown = self._place_word() + "\n"
            self._column, self._space = 0, ""
            return shown
        if character.isspace():
            shown = self._place_word()
            self._space += character
            return shown
        if cell_len(character) == 2:  # lines of Chinese and its kin break between any two characters
            shown = self._place_word()
            self._word = character
            return shown + self._place_word()
        self._word += character
        return self._place_word() if len(self._word) >= self._width() else ""

    def _place_word(self) -> str:
        if not self._word:
            return ""
        wide = cell_len(self._word)
        if self._column and self._column + len(self._space) + wide > self._width():
            shown, self._column = f"\n{self._word}", wide
        else:
            shown = self._space + self._word
            self._column += len(self._space) + wide
        self._space = self._word = ""
        return shown
