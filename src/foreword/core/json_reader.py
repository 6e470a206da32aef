"""`read_json`: the one reader of JSON, within bounds that everything behind it can bear.

Python's own reader raises more than one kind of error, and passes on what breaks later: a number of 4,301 digits,
500 nested lists (which ``json.dumps`` or a chat template then cannot walk), half a surrogate pair (which no file and no
tokenizer takes), ``1e999``. Here each of them is an error of one kind, at the place where it came in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from foreword.errors import ForewordError, UsageError

MAX_NESTING = 128
"""Lists and objects in one another: as many as serde_json takes; a schema of 40 nested objects needs 120."""

MAX_DIGITS = 308
"""Digits of a number, so that every one is also a finite float."""

MAX_FILE_BYTES = 256 << 20
"""Bytes of a file that is one JSON document, such as a tokenizer; files of rows are not bounded by it."""

_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * (MAX_DIGITS + 1)
_NESTED = f"lists and objects are nested deeper than {MAX_NESTING}"
_LONG = f"a number has more than {MAX_DIGITS} digits"
_SURROGATE = "the text has half of a surrogate pair"


class InvalidJson(ValueError):
    """``reason`` says what is wrong with a text; ``position`` is the character where, ``None`` beyond a bound."""

    def __init__(self, reason: str, position: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.position = reason, position

    def sentence(self, where: str, text: str | bytes, mend: str, first_line: int = 1) -> str:
        """What an error says about ``text``, which ``where`` names; ``first_line`` is its line in a file."""
        if self.position is None or isinstance(text, bytes):
            return f"{where}: {self.reason}; {mend}."
        line = text.count("\n", 0, self.position) + first_line
        column = self.position - text.rfind("\n", 0, self.position)
        return f"{where} is not JSON ({self.reason}, line {line} column {column}); {mend}."


def read_json(
    data: str | bytes,
    where: str,
    *,
    error: type[ForewordError] = UsageError,
    mend: str = "write it anew",
    unique: bool = False,
    line_breaks: bool = False,
    constants: bool = False,
    first_line: int = 1,
) -> Any:
    """The value of a JSON text.

    Args:
        data: text, or bytes of UTF-8, with or without a byte order mark.
        where: what the text is, as the error's sentence begins.
        error: the class of the error.
        mend: what to do about it, as the error's sentence ends.
        unique, line_breaks, constants: see `parse_json_at`.
        first_line: the line of the file in which the text begins.

    Raises:
        error: it is no JSON, or beyond the bounds of this file.
    """
    try:
        text = _text(data)
    except InvalidJson as found:
        raise error(found.sentence(where, data, mend)) from found
    try:
        return parse_json(text, unique=unique, line_breaks=line_breaks, constants=constants)
    except InvalidJson as found:
        raise error(found.sentence(where, text, mend, first_line)) from found


def read_json_file(
    file: Path,
    where: str | None = None,
    *,
    error: type[ForewordError] = UsageError,
    mend: str = "write it anew",
    unique: bool = False,
    max_bytes: int = MAX_FILE_BYTES,
) -> Any:
    """`read_json` of a file that is one document; ``where`` is its path without one. An absent file is an error too."""
    where = where or str(file)
    try:
        data = read_document(file, max_bytes)
    except (OSError, ValueError) as failed:
        raise error(f"{where} cannot be read ({getattr(failed, 'strerror', None) or failed}); {mend}.") from failed
    return read_json(data, where, error=error, mend=mend, unique=unique)


def read_document(file: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a file that is one document. Raises OSError, or ValueError for one that is larger or has no name."""
    with file.open("rb") as handle:
        data = handle.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"it is larger than {max_bytes} bytes")
    return data


def read_json_object(
    data: str | bytes | Path,
    where: str | None = None,
    *,
    error: type[ForewordError] = UsageError,
    mend: str = "write it anew",
    unique: bool = False,
) -> dict[str, Any]:
    """`read_json`, or for a path `read_json_file`, of a document that must be an object."""
    where = where or (str(data) if isinstance(data, Path) else "the text")
    if isinstance(data, Path):
        value = read_json_file(data, where, error=error, mend=mend, unique=unique)
    else:
        value = read_json(data, where, error=error, mend=mend, unique=unique)
    if not isinstance(value, dict):
        raise error(f"{where} must be a JSON object, found {describe_kind(value)}; {mend}.")
    return value


def parse_json(data: str | bytes, *, unique: bool = False, line_breaks: bool = False, constants: bool = False) -> Any:
    """`read_json` for texts that may well be no JSON, such as what a model wrote.

    Raises InvalidJson, which is a ValueError, and nothing else.
    """
    text = _text(data)
    value, end = parse_json_at(text, unique=unique, line_breaks=line_breaks, constants=constants)
    if text[end:].strip(" \t\r\n"):
        raise InvalidJson("Extra data", end)
    return value


def parse_json_at(
    text: str, start: int = 0, *, unique: bool = False, line_breaks: bool = False, constants: bool = False
) -> tuple[Any, int]:
    """The JSON value that begins at a place of a text, behind white space, and the place where it ends.

    Args:
        unique: a key that stands twice in an object is an error; else the last one counts.
        line_breaks: texts may hold bare line breaks and other control characters.
        constants: ``NaN`` and ``Infinity`` are numbers, as Python writes them.

    Raises InvalidJson, and nothing else.
    """
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    try:
        value, end = _decoder(unique, line_breaks, constants).raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise InvalidJson(error.msg, error.pos) from None
    except RecursionError:
        raise InvalidJson(_NESTED) from None
    except InvalidJson:
        raise
    except ValueError:  # Python converts no more than 4,300 digits
        raise InvalidJson(_LONG) from None
    _check_bounds(value, text, start, end)
    return value, end


def describe_kind(value: object) -> str:
    """What a value is in JSON's words, for errors."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _text(data: str | bytes) -> str:
    if isinstance(data, bytes):
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InvalidJson(f"byte {error.start} is not UTF-8") from None
    return data.removeprefix("\ufeff")


def _check_bounds(value: Any, text: str, start: int, end: int) -> None:
    """Raise InvalidJson for what the C code of ``json`` lets through; linear, and for ordinary texts a few scans."""
    if text.count("[", start, end) + text.count("{", start, end) > MAX_NESTING:
        _check_nesting(value)
    try:
        data = text[start:end].encode()
    except UnicodeEncodeError:
        raise InvalidJson(_SURROGATE) from None
    if _LONG_NUMBER in data.translate(_DIGITS):  # perhaps within a text
        for each in _leaves(value):
            if isinstance(each, int) and abs(each) >= 10**MAX_DIGITS:
                raise InvalidJson(_LONG)
    if b"\\ud" in data or b"\\uD" in data:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InvalidJson(_SURROGATE) from None


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [below for each in level for below in _children(each) if isinstance(below, dict | list)]
        if not level:
            return
    raise InvalidJson(_NESTED)


def _children(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _leaves(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict | list):
            waiting += _children(each)
        else:
            yield each


@cache
def _decoder(unique: bool, line_breaks: bool, constants: bool) -> json.JSONDecoder:
    return json.JSONDecoder(
        strict=not line_breaks,
        parse_float=_finite,
        parse_constant=float if constants else _refuse_constant,
        object_pairs_hook=_unique if unique else None,
    )


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise InvalidJson(f"the number {digits[:20]} is too large")
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise InvalidJson(f"{constant} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise InvalidJson(f"key {_short(twice)} stands twice")
    return found


def _short(key: str) -> str:
    return repr(re.sub(r"\s+", " ", key) if len(key) <= 40 else f"{key[:40]}...")
