"""Data sets of the Hugging Face Hub, and folders laid out like one, by a name that fits on a command line.

Loading scripts are never run: the oldest release in the `[data]` extra's range has none any more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.core.json_reader import read_json_object
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
        try:
            folder = Path(source).expanduser().absolute()
            is_folder = folder.is_dir()
        except (OSError, RuntimeError, ValueError) as error:  # too long, of an unknown user, with a NUL
            raise DataError(f"{name[:80]!r} names no folder and no data set ({error}); check the name.") from error
        if is_folder:
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
            if saved_splits(Path(self.path)):
                data = self._saved()
            else:
                data = load_dataset(self.path, self.config, revision=self.revision, split=self.split)
        except DataError:
            raise
        except Exception as error:  # loaders of a dozen formats raise what they like
            raise DataError(f"{self.name} cannot be loaded: {first_line(error)}; check the name.") from error
        assert isinstance(data, Dataset)
        # As Arrow, pictures and sounds stay undecoded.
        return table_rows(data.with_format("arrow")[:], data.features, self.name)

    def _saved(self) -> Any:
        """The split of a folder that `save_to_disk` wrote, cut and joined as `load_dataset` does."""
        from datasets import Dataset, ReadInstruction, concatenate_datasets, load_from_disk

        loaded = load_from_disk(self.path)
        splits = (
            {saved_splits(Path(self.path))[0]: loaded}
            if isinstance(loaded, Dataset)
            else {str(name): each for name, each in loaded.items()}
        )
        named = re.sub(r"\[[^\]]*\]", "", self.split).split("+")
        if unknown := [each for each in named if each not in splits]:
            raise DataError(f"{self.name}: there is no split {unknown[0]!r}; it has {', '.join(splits)}.")
        parts = ReadInstruction.from_spec(self.split).to_absolute({each: len(data) for each, data in splits.items()})
        cut = [
            splits[part.splitname].select(
                range(part.from_ or 0, len(splits[part.splitname]) if part.to is None else part.to)
            )
            for part in parts
        ]
        return concatenate_datasets(cut)


def saved_splits(folder: Path) -> tuple[str, ...]:
    """Names of the splits of a folder that `save_to_disk` wrote; empty for any other folder.

    A single `Dataset` is called by the split that it was cut from, or ``train``.
    """
    listed = _read_json(folder / "dataset_dict.json").get("splits")
    if isinstance(listed, list):
        return tuple(map(str, listed))
    if not (folder / "dataset_info.json").is_file() or not (state := _read_json(folder / "state.json")):
        return ()
    split = state.get("_split")
    return (split if isinstance(split, str) and re.fullmatch(r"\w[\w.-]*", split) else "train",)


def saved_split(folder: Path) -> str:
    """The only split of a folder that `save_to_disk` wrote. Raises DataError for any other folder."""
    splits = saved_splits(folder)
    if len(splits) > 1:
        raise DataError(
            f"{folder} holds the splits {', '.join(splits)}; name one: {SCHEME}{_shown(folder)}:{splits[0]}."
        )
    if not splits:
        raise DataError(f"{folder} is a folder; name a file in it, or a split of it: {SCHEME}{_shown(folder)}:train.")
    return splits[0]


def _shown(folder: Path) -> str:
    return str(folder) if folder.is_absolute() or str(folder).startswith((".", "~")) else f"./{folder}"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return read_json_object(file, error=DataError)
    except DataError:
        return {}
