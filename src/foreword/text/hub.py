"""Data sets of the Hugging Face Hub, and folders laid out like one, by a name that fits on a command line.

Loading scripts are never run: the oldest release in the `[data]` extra's range has none any more.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import DataError
from foreword.text.table import first_line, require_data_extra, table_rows

SCHEME = "hub:"
# A split may be cut or joined as `datasets` spells it: train[:1000], train+validation.
_PART = r"\w[\w.-]*(?:\[[^\[\]/]*\])?"
_NAME = re.compile(rf"hub:(?P<source>.+?):(?P<split>{_PART}(?:\+{_PART})*)")


@dataclass(frozen=True)
class HubDataset:
    """One split of a data set.

    Attributes:
        name: as it was typed.
        path: ``OWNER/NAME`` on the Hub, or a folder's whole path.
        config: which of several variants, or ``None`` for the only or default one.
        revision: branch, tag or commit on the Hub; ``None`` is the newest.
        split: such as ``train`` or ``train[:1000]``.
    """

    name: str
    path: str
    config: str | None
    revision: str | None
    split: str

    @classmethod
    def parse(cls, name: str) -> HubDataset:
        """Read ``hub:OWNER/NAME[/CONFIG][@REVISION]:SPLIT`` or ``hub:FOLDER[/CONFIG]:SPLIT``.

        A folder of that name comes before the Hub. Raises DataError if it is written otherwise.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise DataError(f"{name!r} does not name a data set and a split; write hub:OWNER/NAME:train.")
        source, split = match["source"], match["split"]
        folder = Path(source).expanduser().absolute()
        if folder.is_dir():
            return cls(name, str(folder), None, None, split)
        if source.startswith((".", "/", "~")):
            if not folder.parent.is_dir():
                raise DataError(f"{name!r}: there is no folder {source}; check the path.")
            return cls(name, str(folder.parent), folder.name, None, split)
        return cls._on_hub(name, source, split)

    @classmethod
    def _on_hub(cls, name: str, source: str, split: str) -> HubDataset:
        path, _, revision = source.partition("@")
        owner, title, config = (*path.split("/"), "", "")[:3]
        # A single word would make `datasets` look for one of its own loaders, such as csv.
        if not owner or not title or path.count("/") > 2:
            raise DataError(f"{name!r} names neither a folder nor a data set; write hub:OWNER/NAME:{split}.")
        return cls(name, f"{owner}/{title}", config or None, revision or None, split)

    def rows(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Values and location of every row; downloads what the cache does not hold.

        Raises:
            DataError: the extra is missing, or there is no such data set, variant or split.
        """
        require_data_extra(self.name)
        from datasets import Dataset, load_dataset

        try:
            data = load_dataset(self.path, self.config, revision=self.revision, split=self.split)
        except Exception as error:  # loaders of a dozen formats raise what they like
            raise DataError(f"{self.name} cannot be loaded: {first_line(error)}; check the name.") from error
        assert isinstance(data, Dataset)
        # As Arrow, pictures and sounds stay undecoded.
        return table_rows(data.with_format("arrow")[:], data.features, self.name)

    def digest(self) -> str:
        """SHA-256 over the rows as canonical JSON: what the Hub holds may change under a name."""
        digest = hashlib.sha256()
        for values, _ in self.rows():
            line = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=bytes.hex)
            digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()
