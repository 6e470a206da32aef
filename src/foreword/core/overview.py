"""`Overview`: an object in a few lines, as text for a prompt and as HTML for a notebook; never a tensor."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAX_WIDTH = 100


@dataclass(frozen=True)
class Overview:
    """What an object is, and a few facts about it.

    Attributes:
        title: the first line, such as ``Task 'reviews@0001-3f2a'``.
        facts: by name, in their order; those that are ``None`` or empty texts are left out.
    """

    title: str
    facts: Mapping[str, object]

    def __str__(self) -> str:
        shown = self._shown()
        width = max(map(len, shown), default=0)
        return "\n".join([self.title, *(f"  {name.ljust(width)}  {value}" for name, value in shown.items())])

    def to_html(self) -> str:
        """A table with the title above it."""
        rows = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(value)}</td></tr>'
            for name, value in self._shown().items()
        )
        return f"<b>{html.escape(self.title)}</b><table>{rows}</table>"

    def _shown(self) -> dict[str, str]:
        return {name: shorten(str(value)) for name, value in self.facts.items() if value is not None and value != ""}


class WithOverview:
    """Base of what a user meets at a prompt or in a notebook: its `repr` is its `overview`.

    A dataclass derives from it with ``repr=False``, or it would write a `repr` of its own.
    """

    def overview(self) -> Overview:
        """What it is, in a few facts."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return str(self.overview())

    def _repr_html_(self) -> str:
        return self.overview().to_html()


def shorten(text: str, width: int = _MAX_WIDTH) -> str:
    """A text on one line of at most ``width`` characters."""
    line = text.replace("\n", "\\n")
    return line if len(line) <= width else f"{line[: width - 3]}..."


def join_some(names: list[str] | tuple[str, ...], most: int = 8) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def metrics_line(metrics: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """``accuracy 0.9150 (before 0.7680)``, one after another; values that are no numbers are left out."""
    numbers, earlier = _numbers(metrics), _numbers(before or {})
    return ", ".join(
        f"{name} {value:.4f}" + (f" (before {earlier[name]:.4f})" if name in earlier else "")
        for name, value in numbers.items()
    )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, int | float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}
