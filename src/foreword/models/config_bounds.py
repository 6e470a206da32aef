"""`check_config`: counts in a model's ``config.json`` are bounded before a library makes lists as long as they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foreword.core.json_reader import read_json_object
from foreword.errors import UnsupportedModel

MAX_REPEATS = 8192
"""Layers, blocks, experts, heads and the like that a configuration may count; the deepest models have hundreds."""

MAX_NUMBER = 2**53
"""Bound of every whole number, up to which each is also a float."""

_REPEATED = re.compile(r"(?:layers?|blocks?|depths?|stages?|experts?|groups?|heads?)$")


def check_config(folder: Path, name: str) -> None:
    """Raise UnsupportedModel for a ``config.json`` in ``folder`` that cannot be read, or whose numbers no model has;
    whatever else is wrong with it, the library that reads it says."""
    file = folder / "config.json"
    if not file.is_file():
        return
    config = read_json_object(file, error=UnsupportedModel, mend="download it again")
    for key, number in _whole_numbers(config):
        most = MAX_REPEATS if _REPEATED.search(key) else MAX_NUMBER
        if abs(number) > most:
            raise UnsupportedModel(
                f"the config.json of {name} says {key} {str(number)[:40]}, expected at most {most}; download it again."
            )


def _whole_numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number of a JSON value, with the key that it stands under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _whole_numbers(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _whole_numbers(inner, key)
    elif isinstance(value, int):
        yield key, value
