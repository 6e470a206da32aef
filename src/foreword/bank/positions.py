"""`positions_of`: how many positions a version's prefix takes, from the header of its file alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreword.bank.bank import Bank
from foreword.bank.safetensors_header import read_safetensors_header
from foreword.bank.version_files import PREFIX
from foreword.errors import CorruptFile


def positions_of(bank: Bank, record: dict[str, Any]) -> int | None:
    """Positions of the prefix of a version, by its record from `Bank.describe`.

    ``None`` for a bank on an object store, from which the whole file would have to be fetched, and for a damaged file.
    """
    file = Path(bank.location) / record["name"] / "versions" / record["version"] / PREFIX
    try:
        with file.open("rb") as stream:
            tensors = read_safetensors_header(stream, str(file)).tensors
    except (OSError, CorruptFile):
        return None
    return max((info.shape[1] for name, info in tensors.items() if name.endswith(".key")), default=0)
