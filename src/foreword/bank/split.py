"""`Split`: several versions of a task that are served side by side, each to a part of its requests."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from foreword.bank.json_document import FieldCheck, dump, is_a, parse_fields
from foreword.bank.names import is_version, version_number
from foreword.errors import UsageError

SPLIT = "split"
"""The file beside ``current`` that holds a split."""

_are_weights = is_a(dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]])


def _is_weights(value: Any) -> bool:
    return _are_weights(value) and len(value) > 1 and all(map(is_version, value))


_FIELDS: dict[str, FieldCheck] = {
    "format": ("the format version", is_a(int)),
    "current": ("a version such as 0001-0123456789ab", is_version),
    "weights": ("an object of two or more versions to numbers above 0", _is_weights),
}


@dataclass(frozen=True)
class Split:
    """Two or more versions with weights.

    Attributes:
        current: the served version that it belongs to, which is one of them: a split ends when another is served.
        weights: part of the requests by version, the newest first; their sum is 1.
    """

    current: str
    weights: Mapping[str, float]

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Split:
        """A split by numbers in any unit; its current version is the one with the largest. Raises UsageError."""
        wrong = next((value for value in weights.values() if not (math.isfinite(value) and value > 0)), None)
        if wrong is not None:
            raise UsageError(
                f"the weight of a version is a number above 0, found {wrong}; leave the version out for 0."
            )
        if len(weights) < 2:
            raise UsageError("a split needs two versions or more, such as 0002=0.1 0001=0.9.")
        total = sum(weights.values())
        newest_first = sorted(weights, key=lambda version: (version_number(version), version), reverse=True)
        shares = {version: weights[version] / total for version in newest_first}
        return cls(max(shares, key=shares.__getitem__), shares)

    @classmethod
    def parse(cls, data: bytes, where: str) -> Split:
        """The split that a file holds. Raises CorruptFile."""
        found = parse_fields(data, _FIELDS, where)
        return cls(found["current"], cls.of(found["weights"]).weights)

    def to_json(self) -> bytes:
        return (dump({"format": 1, "current": self.current, "weights": dict(self.weights)}, SPLIT) + "\n").encode()

    def choose(self, task: str, user: str | None) -> str:
        """The version for one request: the same for every request of a user, at random without one.

        The newest versions come first, so a user who has got one keeps it while its weight grows.
        """
        # A hash of the task's name, too, so that not the same users meet what is new in every task.
        at = random.random() if user is None else _fraction(f"{task}\0{user}")
        for version, share in self.weights.items():
            at -= share
            if at < 0:
                return version
        return self.current

    def describe(self) -> str:
        """``0002-... 10 %, 0001-... 90 %``."""
        return ", ".join(f"{version} {100 * share:.4g} %" for version, share in self.weights.items())


def _fraction(text: str) -> float:
    """A number from 0 to below 1 that is the same for a text everywhere and always."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:6], "big") / 2**48


def parse_weights(texts: list[str]) -> dict[str, float]:
    """Versions or their numbers and weights of ``0002=0.1``. Raises UsageError."""
    weights: dict[str, float] = {}
    for text in texts:
        version, equals, number = text.partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not version or not equals or not math.isfinite(weight):
            raise UsageError(f"a version with its weight looks like 0002=0.1, found {text!r}.")
        if version in weights:
            raise UsageError(f"version {version} has two weights; give it one.")
        weights[version] = weight
    return weights
