"""Names of tasks and versions, and suggestions for unknown ones."""

from __future__ import annotations

import difflib
import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import islice

from foreword.errors import UsageError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"([0-9]{4,})-[0-9a-f]{12}")
NAMES_SECONDS = 5.0
"""How old a list of names may be that suggestions are made from."""
_LISTED = 8
_MAX_WANTED = 128
"""Characters of a name that is worth a search for close ones."""
_NEIGHBOURS = 32
_SCANNED = 20_000


def is_name(text: object) -> bool:
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def is_version(text: object) -> bool:
    return isinstance(text, str) and _VERSION.fullmatch(text) is not None


def check_name(name: str) -> None:
    """Raise `UsageError` unless ``name`` may be published. Every path in a bank is made of checked names."""
    if not is_name(name):
        raise UsageError(
            f"a task name is 1 to 64 of a-z, 0-9, '.', '_' and '-', and starts with a letter or digit, found "
            f"{name!r}; choose another name."
        )


def version_number(version: str) -> int:
    """``12`` of ``0012-0123456789ab``."""
    return int(version.partition("-")[0])


def make_version(number: int, digest: str) -> str:
    """``0012-0123456789ab``: a number that counts up, and the first 12 digits of the content digest."""
    return f"{number:04d}-{digest[:12]}"


def split_ref(ref: str) -> tuple[str, str | None]:
    """``name`` or ``name@version`` as its two parts."""
    name, at, version = ref.partition("@")
    return name, version if at else None


def matching_versions(wanted: str, versions: Sequence[str]) -> list[str]:
    """The versions that a user means by a full version, or by its number with or without leading zeros."""
    if wanted.isascii() and wanted.isdigit():
        return [v for v in versions if v.partition("-")[0].lstrip("0") == wanted.lstrip("0")]
    return [v for v in versions if v == wanted]


def suggest(wanted: str, known: Sequence[str], command: str) -> str:
    """The end of an error about an unknown name: close matches, all names if few, or a command that lists them.

    Costs a few milliseconds however many names there are, since every wrong name of a client's comes here.
    """
    if near := difflib.get_close_matches(wanted, _candidates(wanted, known), n=3):
        return f"did you mean {' or '.join(near)}?"
    if known and len(known) <= _LISTED:
        return f"there are {', '.join(known)}." if len(known) > 1 else f"there is only {known[0]}."
    return f"`{command}` lists what is there." if known else "nothing is there yet: publish a task first."


def _candidates(wanted: str, known: Sequence[str]) -> Sequence[str]:
    """Of many names, those that begin most alike, and some that end alike: comparing takes long, finding these does
    not."""
    if len(wanted) > _MAX_WANTED:
        return ()
    if len(known) <= 2 * _NEIGHBOURS:
        return known
    names = sorted(known)
    place = bisect_left(names, wanted)
    alike = names[max(0, place - _NEIGHBOURS // 2) : place + _NEIGHBOURS // 2]
    ending = (name for name in islice(names, _SCANNED) if name.endswith(wanted[-3:]))
    return list(dict.fromkeys([*alike, *islice(ending, _NEIGHBOURS)]))
