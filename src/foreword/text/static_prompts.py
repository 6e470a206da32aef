"""Files of static prompts: JSON rows ``{task_id, prompt}`` or ``{task_id, system}``, as rtp-llm writes them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foreword.core.json_reader import read_json
from foreword.errors import DataError
from foreword.text.text_file import read_utf8


@dataclass(frozen=True)
class StaticPrompt:
    """One row: a task's name and the text that stands in front of its requests."""

    name: str
    kind: Literal["system", "prompt"]
    text: str


def read_prompts(path: str | Path) -> list[StaticPrompt]:
    """Rows of a JSON array, or of JSON lines. Raises DataError that names the row."""
    return parse_prompts(read_utf8(Path(path)), str(path))


def parse_prompts(text: str, where: str) -> list[StaticPrompt]:
    """The same from the text of a file; ``where`` names it in errors."""
    rows = _rows(text, where)
    if not rows:
        raise DataError(f"{where} has no prompts; give at least one row.")
    prompts = [_prompt(row, f"{where} row {number}") for number, row in enumerate(rows, 1)]
    names = Counter(prompt.name for prompt in prompts)
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise DataError(f"{where} has task_id {twice!r} twice; give every prompt its own.")
    return prompts


def _rows(text: str, where: str) -> list[Any]:
    if text.lstrip().startswith("["):
        return _loads(text, where, 1)
    # Not splitlines(): U+2028 and U+0085 end no line in JSON, and may stand inside a string.
    lines = enumerate(text.split("\n"), 1)
    return [_loads(line, where, number) for number, line in lines if line.strip()]


def _loads(text: str, where: str, line: int) -> Any:
    mend = 'write an array of rows such as {"task_id": 1, "prompt": "..."}'
    # rtp-llm takes prompts with bare line breaks in them.
    return read_json(text, where, error=DataError, mend=mend, line_breaks=True, first_line=line)


def _prompt(row: Any, where: str) -> StaticPrompt:
    mend = 'write it as {"task_id": 1, "prompt": "..."}, or with "system" for a system turn'
    if not isinstance(row, dict) or not {"task_id"} < set(row) <= {"task_id", "prompt", "system"} or len(row) != 2:
        raise DataError(f"{where} needs task_id and either prompt or system, and nothing else; {mend}.")
    task_id = row["task_id"]
    if isinstance(task_id, bool) or not isinstance(task_id, int | str):
        raise DataError(f"{where} has task_id {task_id!r}, expected an integer or a string; {mend}.")
    kind: Literal["system", "prompt"] = "system" if "system" in row else "prompt"
    if not isinstance(row[kind], str) or not row[kind]:
        raise DataError(f"{where} has no text for its {kind}; {mend}.")
    return StaticPrompt(str(task_id), kind, row[kind])
