"""Strict JSON: parsing, and checks of the fields of ``task.json`` and of a prefix file's header."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from foreword.core import ModelIdentity
from foreword.core.json_reader import InvalidJson, parse_json
from foreword.core.prefix import MAX_POSITIONS
from foreword.errors import CorruptFile, UsageError

FORMAT = 1
MEND = "publish it again or restore it from a copy"

LARGEST = 1e300
"""Bound of the numbers that people are shown: Python makes no float of a whole number beyond about 1e308."""

FieldCheck = tuple[str, Callable[[object], bool]]
"""The valid values of a field, as errors describe them, and a predicate."""

Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def is_a(hint: Any) -> Callable[[object], bool]:
    """A predicate: whether a JSON value has a type, without any conversion but that of whole numbers to float."""
    adapter: TypeAdapter[Any] = TypeAdapter(hint)

    def check(value: object) -> bool:
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError:
            return False
        return True

    return check


def dump(document: Mapping[str, Any], what: str, *, indent: int | None = None) -> str:
    """JSON text with the order of keys kept. Raises `UsageError` for anything that JSON cannot hold."""
    separators = (",", ":") if indent is None else None
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{what} holds something other than JSON values ({error}); give texts, finite numbers, lists and "
            "objects only."
        ) from error
    return text


def parse(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8, no repeated keys, no NaN. Raises `CorruptFile`."""
    try:
        found = parse_json(data, unique=True)
    except InvalidJson as error:
        raise CorruptFile(f"{where}: expected JSON, found something else ({error}); {MEND}.") from error
    if not isinstance(found, dict):
        raise CorruptFile(f"{where}: expected a JSON object, found {describe(found)}; {MEND}.")
    return found


def parse_fields(
    data: bytes, fields: Mapping[str, FieldCheck], where: str, optional: Mapping[str, FieldCheck] | None = None
) -> dict[str, Any]:
    """A JSON object that has all of ``fields``, perhaps some of ``optional``, and no others, each of them valid.

    Raises `CorruptFile`.
    """
    found = parse(data, where)
    known = {**fields, **(optional or {})}
    _check_format(found.get("format"), where)
    if missing := sorted(fields.keys() - found.keys()):
        raise CorruptFile(f"{where}: expected the fields {', '.join(missing)}, found none; {MEND}.")
    if unknown := sorted(found.keys() - known.keys()):
        raise CorruptFile(
            f"{where}: expected only fields that this Foreword knows, found "
            f"{describe(', '.join(unknown))}; it was made by a newer Foreword, so upgrade foreword."
        )
    if error := field_error(found, known):
        raise CorruptFile(f"{where}: {error}; {MEND}.")
    return found


def field_error(document: Mapping[str, Any], fields: Mapping[str, FieldCheck]) -> str | None:
    """A clause for an error about the first of ``fields`` whose value is none that it may have."""
    for name, (expected, check) in fields.items():
        if name in document and not check(document[name]):
            return f"{name} must be {expected}, found {describe(document[name])}"
    return None


def describe(value: object) -> str:
    """A value as JSON of at most 60 characters, for an error."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_identity(value: object) -> bool:
    """Whether ``value`` is `ModelIdentity.to_json` of some model with at least one layer."""
    if not isinstance(value, dict):
        return False
    try:
        identity = ModelIdentity.from_json(value)
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    sizes = (identity.hidden_size, identity.vocab_size, identity.head_size)
    if not identity.layers or not all(0 <= size <= MAX_POSITIONS for size in sizes):
        return False
    return dump(identity.to_json(), "identity") == dump(value, "identity")


def is_provenance(value: object) -> bool:
    """Whether ``value`` is an object in which those of its entries that are shown to people are what they expect."""
    if not isinstance(value, dict):
        return False
    metrics = [value.get(name) for name in ("metrics", "metrics_before")]
    if not all(isinstance(each, dict | None) for each in (*metrics, value.get("recipe"))):
        return False
    figures = [figure for each in metrics for figure in (each or {}).values() if isinstance(figure, int | float)]
    return isinstance(value.get("parents"), list | None) and all(abs(figure) <= LARGEST for figure in figures)


def _check_format(found: object, where: str) -> None:
    if type(found) is int and found > FORMAT:
        raise CorruptFile(f"{where}: expected format {FORMAT}, found {found}; upgrade foreword.")
    if found != FORMAT or type(found) is not int:
        raise CorruptFile(f"{where}: expected format {FORMAT}, found {describe(found)}; {MEND}.")
