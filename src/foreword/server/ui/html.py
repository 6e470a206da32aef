"""Answers, probabilities and versions as HTML. Everything that others wrote is escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from foreword.server.ui.answer_pane import AnswerPane
from foreword.server.ui.task_versions import TaskVersion
from foreword.server.ui.translations import both


def header(model: str) -> str:
    """The top of the page."""
    return f'<h1>Foreword</h1><p class="tagline">{both("tagline")} <code>{escape(model)}</code></p>'


def hint(key: str) -> str:
    """What will be here."""
    return f'<p class="hint">{both(key)}</p>'


def problem(sentence: str) -> str:
    """An error in the server's own words."""
    return f'<p class="problem" role="alert">{escape(sentence)}</p>'


def mistake(key: str) -> str:
    """An error of the page's own."""
    return f'<p class="problem" role="alert">{both(key)}</p>'


def done(what: str, key: str) -> str:
    """What was done, and to what."""
    return f'<p class="done" role="status"><code>{escape(what)}</code> {both(key)}</p>'


def answers(columns: Sequence[AnswerPane]) -> str:
    """Answers side by side."""
    return _grid(_answer(column) for column in columns)


def probabilities(found: Mapping[str, Mapping[str, float] | str]) -> str:
    """Bars for every task; a text is the sentence that refused."""
    return _grid(
        _card(task, _bars(probs) if isinstance(probs, Mapping) else problem(probs)) for task, probs in found.items()
    )


def tasks(rows: Sequence[TaskVersion]) -> str:
    """The served version of every task."""
    if not rows:
        return hint("no_tasks")
    return _table(both("all_tasks"), "task", rows, lambda row: f"<strong>{escape(row.task)}</strong>", versioned=True)


def versions(task: str, rows: Sequence[TaskVersion]) -> str:
    """All versions of a task."""

    def title(row: TaskVersion) -> str:
        mark = f' <span class="mark">{both("served")}</span>' if row.served else ""
        return f"<code>{escape(row.version)}</code>{mark}"

    return _table(f"{both('all_versions')} <code>{escape(task)}</code>", "version", rows, title, versioned=False)


def _grid(cards: Iterable[str]) -> str:
    return f'<div class="board">{"".join(cards)}</div>'


def _card(title: str, inside: str, *, note: str = "", busy: bool = False) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    state = ' aria-busy="true"' if busy else ""
    return f'<article class="card"{state}><h3>{escape(title)}{small}</h3>{inside}</article>'


def _answer(column: AnswerPane) -> str:
    if column.text:
        text = f'<div class="text">{escape(column.text)}</div>'
    elif column.done and column.error is None:
        text = hint("empty_answer")
    else:
        text = "" if column.done else hint("waiting")
    wrong = problem(column.error) if column.error is not None else ""
    version = column.ref.partition("@")[2]
    return _card(column.model, text + wrong + _figures(column), note=version, busy=not column.done)


def _figures(column: AnswerPane) -> str:
    rate, cached = column.tokens_per_second, column.cached_tokens
    shown = [
        ("first", None if column.first is None else _seconds(column.first)),
        ("rate", None if rate is None else f"{rate:.1f}"),
        ("cached", None if cached is None else f"{cached:,} {both('of')} {column.prompt_tokens:,}"),
    ]
    cells = [f"<div><dt>{both(key)}</dt><dd>{value or '–'}</dd></div>" for key, value in shown]
    return f'<dl class="figures">{"".join(cells)}</dl>'


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _bars(probs: Mapping[str, float]) -> str:
    """The likeliest label first."""
    ordered = sorted(probs.items(), key=lambda pair: -pair[1])
    return f'<ol class="bars">{"".join(_bar(label, value) for label, value in ordered)}</ol>'


def _bar(label: str, value: float) -> str:
    percent = f"{value:.1%}"
    return (
        f'<li><span class="label">{escape(label)}</span><span class="value">{percent}</span>'
        f'<span class="track" role="img" aria-hidden="true"><i style="width:{percent}"></i></span></li>'
    )


def _table(
    caption: str, first: str, rows: Sequence[TaskVersion], title: Callable[[TaskVersion], str], *, versioned: bool
) -> str:
    """A table that becomes a list of cards on a phone, which is why every cell repeats its column's name."""
    columns: dict[str, Callable[[TaskVersion], str]] = {first: title}
    if versioned:
        columns["version"] = lambda row: f"<code>{escape(row.version)}</code>"
    columns |= _COLUMNS
    heads = "".join(f'<th scope="col">{both(key)}</th>' for key in columns)
    body = "".join(f"<tr>{''.join(_cell(key, show(row)) for key, show in columns.items())}</tr>" for row in rows)
    return (
        f'<table class="shelf"><caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    )


def _cell(key: str, content: str) -> str:
    return f'<td><span class="name">{both(key)}</span><span>{content or "–"}</span></td>'


def _size(count: int) -> str:
    """Bytes in units of a thousand, as sizes are given everywhere here."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def _metrics(row: TaskVersion) -> str:
    return "<br>".join(f"{escape(name)} {value:.4g}" for name, value in row.metrics.items())


_COLUMNS: dict[str, Callable[[TaskVersion], str]] = {
    "kind": lambda row: escape(row.kind),
    "method": lambda row: escape(row.method),
    "labels": lambda row: escape(", ".join(row.labels)),
    "size": lambda row: _size(row.bytes),
    "metrics": _metrics,
    "created": lambda row: escape(row.created.replace("T", " ").removesuffix("Z")[:16]),
}
