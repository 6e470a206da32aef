"""HTML of answers, probabilities and task versions. All text from users, models and the bank is escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from foreword.server.ui.answer_pane import AnswerPane
from foreword.server.ui.task_versions import TaskVersion
from foreword.server.ui.translations import bilingual


def header(model: str) -> str:
    """The top of the page."""
    return f'<h1>Foreword</h1><p class="tagline">{bilingual("tagline")} <code>{escape(model)}</code></p>'


def hint(key: str) -> str:
    """A placeholder where content will appear."""
    return f'<p class="hint">{bilingual(key)}</p>'


def server_error(message: str) -> str:
    """The message of an error from the server."""
    return f'<p class="problem" role="alert">{escape(message)}</p>'


def input_error(key: str) -> str:
    """The text of an error in what the visitor entered."""
    return f'<p class="problem" role="alert">{bilingual(key)}</p>'


def success(subject: str, key: str) -> str:
    """The text of a change that was made to ``subject``."""
    return f'<p class="done" role="status"><code>{escape(subject)}</code> {bilingual(key)}</p>'


def answers(panes: Sequence[AnswerPane]) -> str:
    """Answers side by side."""
    return _grid(_answer(pane) for pane in panes)


def probabilities(results: Mapping[str, Mapping[str, float] | float | str]) -> str:
    """Bars of the labels' probabilities for every task, its number, or the message of its error."""
    return _grid(_card(task, _result(result)) for task, result in results.items())


def tasks(rows: Sequence[TaskVersion]) -> str:
    """The served version of every task."""
    if not rows:
        return hint("no_tasks")
    return _table(
        bilingual("all_tasks"), "task", rows, lambda row: f"<strong>{escape(row.task)}</strong>", versioned=True
    )


def versions(task: str, rows: Sequence[TaskVersion]) -> str:
    """All versions of a task."""

    def title(row: TaskVersion) -> str:
        mark = f' <span class="mark">{bilingual("served")}</span>' if row.served else ""
        return f"<code>{escape(row.version)}</code>{mark}"

    return _table(f"{bilingual('all_versions')} <code>{escape(task)}</code>", "version", rows, title, versioned=False)


def _grid(cards: Iterable[str]) -> str:
    return f'<div class="board">{"".join(cards)}</div>'


def _card(title: str, inside: str, *, note: str = "", busy: bool = False) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    state = ' aria-busy="true"' if busy else ""
    return f'<article class="card"{state}><h3>{escape(title)}{small}</h3>{inside}</article>'


def _answer(pane: AnswerPane) -> str:
    if pane.text:
        text = f'<div class="text">{escape(pane.text)}</div>'
    elif pane.done and pane.error is None:
        text = hint("empty_answer")
    else:
        text = "" if pane.done else hint("waiting")
    error = server_error(pane.error) if pane.error is not None else ""
    version = pane.ref.partition("@")[2]
    return _card(pane.model, text + error + _statistics(pane), note=version, busy=not pane.done)


def _statistics(pane: AnswerPane) -> str:
    rate, cached = pane.tokens_per_second, pane.cached_tokens
    statistics = [
        ("first", None if pane.first_text_seconds is None else _seconds(pane.first_text_seconds)),
        ("rate", None if rate is None else f"{rate:.1f}"),
        ("cached", None if cached is None else f"{cached:,} {bilingual('of')} {pane.prompt_tokens:,}"),
    ]
    cells = [f"<div><dt>{bilingual(key)}</dt><dd>{value or '–'}</dd></div>" for key, value in statistics]
    return f'<dl class="figures">{"".join(cells)}</dl>'


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _result(result: Mapping[str, float] | float | str) -> str:
    if isinstance(result, Mapping):
        return _bars(result)
    return server_error(result) if isinstance(result, str) else f'<p class="number">{result:.4g}</p>'


def _bars(probs: Mapping[str, float]) -> str:
    """The most probable label first."""
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
    """A table that becomes a list of cards on a phone, which is why every cell repeats its column's name.

    Args:
        first: key of the name of the first column, whose cells are ``title`` of a row.
        versioned: with a column of the version.
    """
    columns: dict[str, Callable[[TaskVersion], str]] = {first: title}
    if versioned:
        columns["version"] = lambda row: f"<code>{escape(row.version)}</code>"
    columns |= _COLUMNS
    heads = "".join(f'<th scope="col">{bilingual(key)}</th>' for key in columns)
    body = "".join(f"<tr>{''.join(_cell(key, show(row)) for key, show in columns.items())}</tr>" for row in rows)
    return (
        f'<table class="shelf"><caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    )


def _cell(key: str, content: str) -> str:
    return f'<td><span class="name">{bilingual(key)}</span><span>{content or "–"}</span></td>'


def _size(count: int) -> str:
    """Bytes in decimal units."""
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
