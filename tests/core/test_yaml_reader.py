"""The one reader of YAML: plain values, and one kind of error for everything else."""

from __future__ import annotations

from typing import Any

import pytest

from foreword.core.yaml_reader import MAX_LENGTH, MAX_NESTING, MAX_VALUES, InvalidYaml, parse_yaml, read_yaml
from foreword.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 2024-13-45", {"a": "2024-13-45"}),
        ("a: 2024-01-05", {"a": "2024-01-05"}),
        (
            "[1:30, =, <<, 0x1f, 1_000, 5e-3, .5, ~, on, ! x, !!str 12]",
            ["1:30", "=", "<<", 31, 1000, 0.005, 0.5, None, True, "x", "12"],
        ),
        ("yes: 1", {"yes": 1}),
        ("[" * MAX_NESTING + "]" * MAX_NESTING, None),
    ],
)
def test_plain_values(text: str, value: Any) -> None:
    assert value is None or parse_yaml(text)[0] == value
    parse_yaml(text)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: 1\nb: !!int x", 2, "tags are not read"),
        ("a: !!timestamp x", 1, "tags are not read"),
        ("a: !!python/object/apply:os.system [x]", 1, "tags are not read"),
        ("a: &a [*a]", 1, "anchors and aliases are not read"),
        ("a: *b", 1, "anchors and aliases are not read"),
        ("[" * 1000, 1, "nested deeper than 64"),
        ("- " * 1000, 1, "nested deeper than 64"),
        ("a: " + "9" * 309, 1, "more than 308 digits"),
        ("a: " + "9" * 4301, 1, "more than 308 digits"),
        ("a: 1e999", 1, "1e999 is no finite number"),
        ("a: .nan", 1, ".nan is no finite number"),
        ('a: "\\ud800"', 1, "half of a surrogate pair"),
        ('a: "\\UFFFFFFFF"', 1, "out of range"),
        ("%YAML " + "9" * 5000 + "\n---\na", 1, "out of range"),
        ("? [a]\n: 1", 1, "a key is a text"),
        ("a: 1\na: 2", 2, "key 'a' stands twice"),
        ("[" + "1," * MAX_VALUES + "]", 1, "more than 20000 values"),
        ("x" * (MAX_LENGTH + 1), 1, "longer than"),
    ],
)
def test_everything_else_is_one_error(text: str, line: int, reason: str) -> None:
    with pytest.raises(InvalidYaml) as caught:
        parse_yaml(text)
    assert (caught.value.line, reason in caught.value.reason) == (line, True)
    with pytest.raises(UsageError, match=r"^--vary x is not YAML \(.*\); write it anew\.$"):
        read_yaml(text, "--vary x")
