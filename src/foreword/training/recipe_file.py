"""`RecipeFile`: a recipe as it was written, so that whatever is wrong with it is shown where it stands."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from foreword.errors import RecipeError, SettingError, UsageError


@dataclass(frozen=True)
class RecipeFile:
    """A YAML recipe with flags as keys (``batch_size`` or ``batch-size``).

    Attributes:
        path: as the user named it.
        values: by key, spelled with underscores.
        places: the line of every key, from 1; of the keys below another as ``OTHER.KEY``.
        lines: the file's own.
    """

    path: Path
    values: dict[str, Any]
    places: dict[str, int]
    lines: tuple[str, ...]

    @classmethod
    def read(cls, path: str | Path) -> RecipeFile:
        """Raises UsageError for a file that cannot be read, RecipeError for one that is no YAML, or no mapping."""
        text = _text(path)
        bare = cls(Path(path), {}, {}, tuple(text.splitlines()))
        loader = None
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                raise bare._wrong(1, "a recipe is a mapping; write flags as keys, such as 'method: p-tuning-v2'.")
            values = loader.construct_document(node)
        except yaml.YAMLError as error:
            raise bare._wrong(_line(error, text), f"this is not YAML: {_reason(error)}.") from None
        finally:
            if loader is not None:
                loader.dispose()
        places = _places(node)
        for key, below in node.value:
            if isinstance(below, yaml.MappingNode):
                places |= {f"{_key(key.value)}.{name}": line for name, line in _places(below).items()}
        return replace(bare, values={_key(key): value for key, value in values.items()}, places=places)

    @classmethod
    def none(cls) -> RecipeFile:
        """No recipe at all: nothing is in it, and nothing is blamed on it."""
        return cls(Path(), {}, {}, ())

    def without(self, keys: Collection[str]) -> RecipeFile:
        """The recipe where flags have been given in place of some of its keys: it is not to blame for those."""
        return replace(self, places={key: line for key, line in self.places.items() if key not in keys})

    def check_keys(self, known: Collection[str]) -> None:
        """Raise RecipeError for the first key that is not known, naming the nearest one."""
        for key in self.values:
            if key not in known:
                near = get_close_matches(key, sorted(known), n=1)
                mend = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(known))}."
                raise self.error(key, f"there is no key {key!r}; {mend}")

    def error(self, key: str, sentence: str) -> RecipeError:
        """What is wrong with the value of a key."""
        return self._wrong(self.places[key], sentence.removeprefix("--"))

    @contextmanager
    def blamed(self, key: str | None = None) -> Iterator[None]:
        """Show the line of a setting that turns out to be wrong, if it is from here.

        Args:
            key: whose value is looked at, where errors do not say it themselves.
        """
        try:
            yield
        except RecipeError:
            raise
        except UsageError as error:
            found = error.key if isinstance(error, SettingError) else key
            if found not in self.places:
                raise
            raise self.error(found, str(error)) from error

    def _wrong(self, line: int, sentence: str) -> RecipeError:
        shown = f"\n  {line} | {self.lines[line - 1].rstrip()}" if line <= len(self.lines) else ""
        return RecipeError(f"recipe {self.path} line {line}: {sentence}{shown}")


def parse_value(text: str) -> Any:
    """One value as a recipe would have it behind its key. Raises UsageError for what is no YAML."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise UsageError(f"{text!r} is not YAML: {_reason(error)}.") from None


def _places(node: yaml.MappingNode) -> dict[str, int]:
    return {_key(str(key.value)): key.start_mark.line + 1 for key, _ in node.value}


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}; check the path.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error


def _key(spelled: str) -> str:
    return spelled.replace("-", "_")


def _line(error: yaml.YAMLError, text: str) -> int:
    """Where it is, from 1: most errors carry a mark, a forbidden character its position."""
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark) is not None:
        return min(mark.line, max(text.count("\n") - text.endswith("\n"), 0)) + 1
    return text.count("\n", 0, getattr(error, "position", 0)) + 1


def _reason(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        return ", ".join(" ".join(part.split()) for part in (error.context, error.problem) if part)
    return " ".join(str(getattr(error, "reason", error)).split())


class _Loader(yaml.SafeLoader):
    """YAML as its authors mean it: keys are text as spelled (a label may be called ``yes``), a key stands once, and
    ``5e-3`` is a number, which YAML 1.1 only sees with a point."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            key.tag = "tag:yaml.org,2002:str"
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
