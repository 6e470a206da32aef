"""`Template`: how the fields of an example become one text with a place for the answer.

    {field}         the value of an input field; a name may have blanks, dots, quotes, any letters
    {field?}        the same of a field that may be absent, null or empty; alone on its line, it takes the line along
    {field:NAME}    a field whose name would mean something else: {field:mask}, {field:a:b}, {field:really?}
    {field?:NAME}   the same of a field that may be absent
    {join:field}    a list, its items joined by "; " and the cells of an item that is a list by " | "
    {mask}          where the label word goes
    {target:field}  where generated text goes; its value in training comes from that field
    {soft:N}        N learned soft tokens
    {{  }}          a literal brace

A template is data, never code: it is cut by one regular expression, and values are put in as they stand, so
braces inside a value mean nothing. Training, evaluation, server and command line fill templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from foreword.errors import TemplateError


@dataclass(frozen=True)
class InputField:
    """``{name}``, ``{name?}`` where the field is optional, or ``{join:name}`` where it is a list."""

    name: str
    optional: bool = False
    joined: bool = False


@dataclass(frozen=True)
class MaskSlot:
    """``{mask}``."""


@dataclass(frozen=True)
class TargetField:
    """``{target:field}``."""

    field: str


@dataclass(frozen=True)
class SoftSlot:
    """``{soft:length}``."""

    length: int


TemplatePart = str | InputField | MaskSlot | TargetField | SoftSlot
"""Literal text, or a slot."""
P = TypeVar("P", bound=TemplatePart)

_RESERVED = ("mask", "soft", "target")
# What no plain name holds: a colon is for {soft:N} and its like, and stands in JSON that was not escaped.
_NOT_IN_NAMES = re.compile(r"[:\r\n]|^\s*$")
_PIECE = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")
_LENGTH = re.compile(r"[1-9][0-9]{0,5}")
_ESCAPE = re.compile(r"\\([nt\\])")
_ESCAPED = {"n": "\n", "t": "\t", "\\": "\\"}


@dataclass(frozen=True)
class FilledTemplate:
    """One example as text.

    Attributes:
        prompt: everything before the answer; no two neighbours are both text.
        target: the text to be generated, if the template has one and it was asked for.
        after: everything behind the answer, likewise; masked models alone see it.
    """

    prompt: tuple[str | SoftSlot, ...]
    target: str | None
    after: tuple[str | SoftSlot, ...]

    @property
    def text(self) -> str:
        """The prompt as one string. Raises TemplateError if there are soft tokens in it."""
        texts = []
        for piece in self.prompt:
            if isinstance(piece, SoftSlot):
                raise TemplateError(
                    f"the template has soft tokens ({{soft:{piece.length}}}), which plain text cannot "
                    "carry; take {soft:N} out of the template, or learn a prefix instead."
                )
            texts.append(piece)
        return "".join(texts)


@dataclass(frozen=True)
class Template:
    """A parsed template: how an example becomes text, and where its answer goes.

    >>> template = foreword.Template.parse("Review: {text}\\nSentiment:{mask}")
    >>> template.fields, template.has_mask
    (('text',), True)

    Attributes:
        source: as it was written.
        parts: never two neighbouring texts.
    """

    source: str
    parts: tuple[TemplatePart, ...]

    @classmethod
    def parse(cls, source: str) -> Template:
        """Parse a source into parts. Raises TemplateError that names the column and the mend."""
        if not source:
            raise TemplateError("the template is empty; write one such as '{text}\\nLabel:{mask}'.")
        placed = [(piece.start(), _parse_part(source, piece)) for piece in _PIECE.finditer(source)]
        _check_answer(source, placed)
        return cls(source, _merge_text(part for _, part in placed))

    @classmethod
    def default(cls, field: str) -> Template:
        """The template for a data set with a single text field."""
        return cls.parse(f"{slot(field)}\nLabel:{{mask}}")

    @property
    def fields(self) -> tuple[str, ...]:
        """Input fields in the order of their first use; the target is not one of them."""
        return tuple(dict.fromkeys(part.name for part in self.parts if isinstance(part, InputField)))

    @property
    def required_fields(self) -> tuple[str, ...]:
        """Those of `fields` that a row must have."""
        named = (part.name for part in self.parts if isinstance(part, InputField) and not part.optional)
        return tuple(dict.fromkeys(named))

    @property
    def text_field(self) -> str | None:
        """The field that a bare text fills: the only one, or the only one that is not optional."""
        fields = self.fields if len(self.fields) == 1 else self.required_fields
        return fields[0] if len(fields) == 1 else None

    @property
    def target(self) -> str | None:
        """The field that holds the text to be generated, or None."""
        return next((part.field for part in self.parts if isinstance(part, TargetField)), None)

    @property
    def has_mask(self) -> bool:
        """Whether it has ``{mask}``, where a label's word goes."""
        return any(isinstance(part, MaskSlot) for part in self.parts)

    @property
    def num_soft_tokens(self) -> int:
        """Soft tokens of all ``{soft:N}`` together."""
        return sum(part.length for part in self.parts if isinstance(part, SoftSlot))

    def single_field(self) -> str:
        """The one field of a template that tags words. Raises TemplateError if there is more in it than soft tokens."""
        rest = [part for part in self.parts if not isinstance(part, SoftSlot)]
        if len(rest) != 1 or not isinstance(rest[0], InputField):
            raise TemplateError(
                f"the template {_quoted(self.source)} must be one field to tag its words; write it as '{{tokens}}'."
            )
        return rest[0].name

    @property
    def constant_pieces(self) -> tuple[str | SoftSlot, ...]:
        """Text and soft tokens up to the last ``{soft:N}`` before the first field or answer; empty without one."""
        pieces: list[str | SoftSlot] = []
        end = 0
        for part in self.parts:
            if not isinstance(part, str | SoftSlot):
                break
            pieces.append(part)
            end = len(pieces) if isinstance(part, SoftSlot) else end
        return tuple(pieces[:end])

    def without_soft_tokens(self) -> Template:
        """The template without its soft tokens, as the baseline of a run uses it."""
        return Template.parse("".join(_source(part) for part in self.parts if not isinstance(part, SoftSlot)))

    def num_inner_soft_tokens(self, causal: bool) -> int:
        """Soft tokens that stay inside a row: all of an encoder's, those behind `constant_pieces` in a causal one."""
        ahead = sum(piece.length for piece in self.constant_pieces if isinstance(piece, SoftSlot)) if causal else 0
        return self.num_soft_tokens - ahead

    @property
    def before_answer(self) -> str:
        """The literal text directly before the answer; empty if something else stands there, or no answer."""
        for before, part in zip((None, *self.parts), self.parts, strict=False):
            if isinstance(part, MaskSlot | TargetField):
                return before if isinstance(before, str) else ""
        return ""

    def words(self, text: str) -> bool:
        """Whether ``text`` may be this template filled up to its answer: its literal texts stand in it, in order."""
        literals = [""]
        for index, part in enumerate(self.parts):
            if isinstance(part, MaskSlot | TargetField):
                break
            if isinstance(part, InputField):
                if part.optional and self._is_alone(index):  # an empty one takes the line break along
                    literals[-1] = literals[-1][:-1]
                literals.append("")
            elif isinstance(part, str):
                literals[-1] += part
        if len(literals) == 1:
            return text == literals[0]
        first, *inner, last = literals
        if not text.startswith(first) or not text[len(first) :].endswith(last):
            return False
        rest = text[len(first) : len(text) - len(last)]
        for literal in inner:
            if literal not in rest:
                return False
            rest = rest[rest.index(literal) + len(literal) :]
        return True

    def require_answer(self) -> None:
        """Raise TemplateError unless the template says where the answer goes."""
        if not self.has_mask and self.target is None:
            raise TemplateError(
                f"the template {_quoted(self.source)} has no place for the answer; add {{mask}} where the "
                "label goes, or {target:field} where the text of a field is to be generated."
            )

    def references(self, row: Mapping[str, object], where: str = "") -> tuple[str, ...]:
        """Every text that the answer may be: one, or several where the target field holds a list.

        Raises TemplateError for a field that is missing or holds something else.
        """
        return _texts(row, self.target, where) if self.target is not None else ()

    def fill(self, row: Mapping[str, object], where: str = "", *, answer: bool = True) -> FilledTemplate:
        """Put the values of a row in.

        Args:
            row: str, int, float and bool values become text; NaN and others are refused. An optional field may be
                absent, null, NaN or empty.
            where: how errors name the row, such as ``train.jsonl line 3``.
            answer: False if only the inputs are known, as in serving; the target field may then be absent. Of a list of
                references the first is the target; see `references`.

        Raises TemplateError for a field that is missing or is not text.
        """
        prompt: list[str | SoftSlot] = []
        after: list[str | SoftSlot] = []
        target: str | None = None
        pieces = prompt
        for index, part in enumerate(self.parts):
            if isinstance(part, TargetField) and answer:
                target = _texts(row, part.field, where)[0]
            if isinstance(part, MaskSlot | TargetField):
                pieces = after
            elif isinstance(part, InputField):
                value = _value(row, part, where)
                if not value and part.optional and self._is_alone(index) and pieces:
                    pieces[-1] = str(pieces[-1])[:-1]
                pieces.append(value)
            else:
                pieces.append(part)
        return FilledTemplate(_merge_text(prompt), target, _merge_text(after))

    def _is_alone(self, index: int) -> bool:
        """Whether a part stands behind a line break and before another one or the end."""
        before = self.parts[index - 1] if index else ""
        after = self.parts[index + 1] if index + 1 < len(self.parts) else "\n"
        return isinstance(before, str) and before.endswith("\n") and isinstance(after, str) and after.startswith("\n")


def slot(field: str, *, optional: bool = False) -> str:
    """The source of a field's slot, whatever its name. Raises TemplateError for a name with braces."""
    if "{" in field or "}" in field or not field:
        raise TemplateError(f"no slot can name the field {field!r}; give it a name without braces.")
    mark = "?" if optional else ""
    plain = field not in _RESERVED and not field.endswith("?") and not _NOT_IN_NAMES.search(field)
    return f"{{{field}{mark}}}" if plain else f"{{field{mark}:{field}}}"


def is_missing(value: object) -> bool:
    """Whether a value stands for none: null, NaN or the empty text."""
    return value is None or value == "" or value != value


def near_name(name: str, names: Iterable[str]) -> str:
    """``did you mean 'text'?`` for a name that is not among ``names`` but like one of them; else empty."""
    near = nearest_name(name, names)
    return f"did you mean {near!r}?" if near is not None else ""


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that a name is most like, case and outer blanks aside; ``None`` if it is like none."""
    known = {each.strip().casefold(): each for each in names}
    near = get_close_matches(name.strip().casefold(), known, n=1)
    return known[near[0]] if near else None


def _source(part: TemplatePart) -> str:
    if isinstance(part, str):
        return part.replace("{", "{{").replace("}", "}}")
    if isinstance(part, InputField):
        return f"{{join:{part.name}}}" if part.joined else slot(part.name, optional=part.optional)
    return f"{{target:{part.field}}}" if isinstance(part, TargetField) else "{mask}"


def _texts(row: Mapping[str, object], name: str, where: str) -> tuple[str, ...]:
    """The texts of a target field: one, or a list of references."""
    value = row.get(name)
    if isinstance(value, list | tuple):
        if not value or not all(isinstance(text, str) for text in value):
            at = f"{where}: " if where else ""
            raise TemplateError(f"{at}field '{name}' must be a text or a list of texts, found {type(value).__name__}.")
        return tuple(value)
    return (_value(row, InputField(name), where),)


def decode_escapes(text: str) -> str:
    r"""Turn ``\n``, ``\t`` and ``\\``, as typed on a command line, into newline, tab and backslash.

    Every other backslash stays as it is: Windows paths and LaTeX appear in prompts too.
    """
    return _ESCAPE.sub(lambda match: _ESCAPED[match[1]], text)


def _parse_part(source: str, piece: re.Match[str]) -> TemplatePart:
    token, start = piece.group(), piece.start()
    if token in ("{{", "}}"):
        return token[0]
    if token == "{":
        raise _error_at(source, start, "'{' is never closed; close it with '}', or write '{{' for a literal brace")
    if token == "}":
        raise _error_at(source, start, "'}' closes nothing; open it with '{', or write '}}' for a literal brace")
    return _parse_slot(source, start, token[1:-1]) if token[0] == "{" else token


def _parse_slot(source: str, start: int, body: str) -> TemplatePart:
    name, colon, argument = body.partition(":")
    if body == "mask":
        return MaskSlot()
    if colon and name == "soft" and _LENGTH.fullmatch(argument):
        return SoftSlot(int(argument))
    # Behind the colon nothing is reserved: data sets with a column called "target" are common.
    if colon and name == "target" and argument:
        return TargetField(argument)
    if colon and name in ("field", "field?") and argument:
        return InputField(argument, name.endswith("?"))
    if colon and name == "join" and argument:
        return InputField(argument, joined=True)
    field = body.removesuffix("?")
    if not _NOT_IN_NAMES.search(field) and field not in _RESERVED:
        return InputField(field, field != body)
    raise _error_at(source, start, _slot_problem(body))


def _slot_problem(body: str) -> str:
    """Why ``{body}`` is not a slot, and the mend."""
    found = _quoted(f"{{{body}}}")
    name, _, _ = body.partition(":")
    if not body:
        return "'{}' names no field; write '{field}', or '{{}}' for literal braces"
    if name == "soft":
        return f"{found} needs a number of soft tokens from 1 to 999999; write one such as '{{soft:4}}'"
    if name == "target":
        return f"{found} needs the name of the field to generate; write it as '{{target:field}}'"
    if name == "mask?":
        return f"{found} names a field only as '{{field?:mask}}'; '{{mask}}' is where the label goes"
    return (
        f"{found} is not a slot; write '{{field}}' with the name of a field ('{{field:NAME}}' for a name with a "
        "colon), '{mask}', '{target:field}' or '{soft:N}', and '{{' and '}}' for literal braces"
    )


def _check_answer(source: str, placed: list[tuple[int, TemplatePart]]) -> None:
    answer: TemplatePart | None = None
    for start, part in placed:
        if isinstance(part, MaskSlot | TargetField):
            if answer is not None:
                raise _error_at(source, start, _second_answer(answer, part))
            answer = part
        elif isinstance(part, SoftSlot) and isinstance(answer, TargetField):
            raise _error_at(source, start, "soft tokens cannot stand behind a text that is generated; move them ahead")


def _second_answer(first: TemplatePart, second: TemplatePart) -> str:
    if isinstance(first, MaskSlot) and isinstance(second, MaskSlot):
        return "a second '{mask}'; keep one, since an example has one label"
    if isinstance(first, TargetField) and isinstance(second, TargetField):
        return "a second '{target:...}'; keep one, since an example has one answer"
    return "both '{mask}' and '{target:...}'; keep '{mask}' to classify, or '{target:field}' to generate"


def _error_at(source: str, start: int, problem: str) -> TemplateError:
    lines = source[:start].split("\n")
    line = f"line {len(lines)} " if "\n" in source else ""
    return TemplateError(f"template {_quoted(source)}, {line}column {len(lines[-1]) + 1}: {problem}.")


def _quoted(source: str) -> str:
    return repr(source if len(source) <= 60 else source[:57] + "...")


def _value(row: Mapping[str, object], field: InputField, where: str) -> str:
    at, name, optional = f"{where}: " if where else "", field.name, field.optional
    # A column called "really?" is meant by {really?}: it must not pass for an absent "really".
    if optional and name not in row and f"{name}?" in row:
        name, optional = f"{name}?", False
    if optional and is_missing(row.get(name)):
        return ""
    if name not in row:
        raise TemplateError(f"{at}{_no_field(name, row)}")
    value = row[name]
    if field.joined:
        return _joined(value, f"{at}field '{name}'")
    if not isinstance(value, str | int | float) or value != value:
        raise TemplateError(f"{at}field '{name}' is {_kind(value)}, not text; {_mend_value(field, value)}")
    return str(value)


def _joined(value: object, where: str) -> str:
    """The text of ``{join:field}``."""
    items = list(value) if isinstance(value, list | tuple) else []
    cells = [list(item) if isinstance(item, list | tuple) else [item] for item in items]
    if not cells or not all(isinstance(cell, str | int | float) and cell == cell for item in cells for cell in item):
        raise TemplateError(f"{where} must be a list of texts, or of lists of texts, found {type(value).__name__}.")
    return "; ".join(" | ".join(map(str, item)) for item in cells)


def _no_field(name: str, row: Mapping[str, object]) -> str:
    """The sentence about a field that a row does not have."""
    has = ", ".join(sorted(map(str, row))) or "no fields at all"
    mend = near_name(name, map(str, row)) or "add it to the row, or name another field in the template."
    braces = "" if name.isidentifier() else " (for braces that are text write '{{' and '}}')"
    return f"the row has no field '{name}' (it has: {has}){braces}; {mend}"


def _mend_value(field: InputField, value: object) -> str:
    if is_missing(value) and not field.optional:
        return f"give it a text, or write {slot(field.name, optional=True)} if it may be absent."
    if isinstance(value, list | tuple):
        return f"write {{join:{field.name}}} to join its items, or give it a text."
    return "give it a string, a number or a boolean."


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if value != value:
        return "NaN"
    return {list: "a list", dict: "an object"}.get(type(value), f"of type {type(value).__name__}")


def _merge_text(parts: Iterable[P]) -> tuple[P, ...]:
    """The parts with neighbouring texts joined into one, and without empty ones."""
    merged: list[Any] = []
    for part in parts:
        if merged and isinstance(part, str) and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    return tuple(merged)
