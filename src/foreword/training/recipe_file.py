"""`RecipeFile`: the YAML file of a recipe, with line numbers, so that errors show the line that is wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from foreword.core.yaml_reader import MAX_LENGTH, InvalidYaml, parse_yaml
from foreword.errors import RecipeError, SettingError, UsageError


@dataclass(frozen=True)
class RecipeFile:
    """A YAML recipe with flags as keys (``batch_size`` or ``batch-size``).

    Attributes:
        path: as the user named it.
        values: by key, spelled with underscores.
        line_numbers: of every key, from 1; of the keys below another as ``OTHER.KEY``.
        lines: the text of the file.
    """

    path: Path
    values: dict[str, Any]
    line_numbers: dict[str, int]
    lines: tuple[str, ...]

    @classmethod
    def read(cls, path: str | Path) -> RecipeFile:
        """Raises UsageError for a file that cannot be read, RecipeError for one that is no YAML, or no mapping."""
        text = _read_text(path)
        unread = cls(Path(path), {}, {}, tuple(text.splitlines()))
        try:
            values, node = parse_yaml(text)
        except InvalidYaml as error:
            raise unread._error_at(error.line, f"this is not YAML: {error.reason}.") from None
        if not isinstance(node, yaml.MappingNode):
            raise unread._error_at(1, "a recipe is a mapping; write flags as keys, such as 'method: p-tuning-v2'.")
        line_numbers = _line_numbers(node)
        for key, below in node.value:
            if isinstance(below, yaml.MappingNode):
                line_numbers |= {f"{_key(key.value)}.{name}": line for name, line in _line_numbers(below).items()}
        return replace(unread, values={_key(key): value for key, value in values.items()}, line_numbers=line_numbers)

    @classmethod
    def empty(cls) -> RecipeFile:
        """No file: it has no values and no lines."""
        return cls(Path(), {}, {}, ())

    def without(self, keys: Collection[str]) -> RecipeFile:
        """The file for settings whose flags override some keys: errors about those keys show no line of it."""
        return replace(self, line_numbers={key: line for key, line in self.line_numbers.items() if key not in keys})

    def check_keys(self, known: Collection[str]) -> None:
        """Raise RecipeError for the first unknown key, naming the nearest known one."""
        for key in self.values:
            if key not in known:
                near = get_close_matches(key, sorted(known), n=1)
                mend = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}."
                raise self.error(key, f"there is no key {key!r}; {mend}")

    def error(self, key: str, sentence: str) -> RecipeError:
        """An error about the value of a key, with its line."""
        return self._error_at(self.line_numbers[key], sentence.removeprefix("--"))

    @contextmanager
    def locate_errors(self, key: str | None = None) -> Iterator[None]:
        """Turn a UsageError about a setting of this file into a RecipeError that shows its line.

        Args:
            key: the setting, for errors that do not name one.
        """
        try:
            yield
        except RecipeError:
            raise
        except UsageError as error:
            wrong = error.key if isinstance(error, SettingError) else key
            if wrong not in self.line_numbers:
                raise
            raise self.error(wrong, str(error)) from error

    def _error_at(self, line: int, sentence: str) -> RecipeError:
        shown = f"\n  {line} | {self.lines[line - 1].rstrip()[:200]}" if line <= len(self.lines) else ""
        return RecipeError(f"recipe {self.path} line {line}: {sentence}{shown}")


def _line_numbers(node: yaml.MappingNode) -> dict[str, int]:
    return {_key(str(key.value)): key.start_mark.line + 1 for key, _ in node.value}


def _read_text(path: str | Path) -> str:
    try:
        with Path(path).open("rb") as handle:
            data = handle.read(4 * (MAX_LENGTH + 1))  # `parse_yaml` refuses what is longer
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise UsageError(f"recipe {path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"recipe {path} cannot be read: {why}; check the path.") from error


def _key(spelled: str) -> str:
    return spelled.replace("-", "_")
