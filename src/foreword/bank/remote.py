"""A bank on an object store, by any fsspec URL, read through a cache folder on the local disk.

Files are stored under their digest, then ``task.json`` makes the version exist, then ``current`` serves it.
Objects appear whole or not at all, so a publish killed at any moment leaves the version served before. A removal first
replaces ``current`` by the number up to which all versions are removed, so that a publish after a killed removal
brings none of them back.

Writers: the number of a version is claimed with a conditional put (``mode="create"`` of fsspec: S3, Google
Cloud Storage, Azure), so that two writers never share one and no version is lost. fsspec cannot replace
``current`` conditionally, and where a file system has no conditional put the claim is not safe either:
keep to **one writer a task at a time** there.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from foreword.bank.digests import check_bytes, check_file
from foreword.bank.durable import durable_write, make_folders, temporary_name
from foreword.bank.json_document import MEND
from foreword.bank.names import is_name, is_version, matching_versions, version_number
from foreword.bank.record import parse_record
from foreword.bank.split import SPLIT
from foreword.bank.store import CURRENT
from foreword.bank.time_to_live import USED
from foreword.bank.version_files import RECORD
from foreword.bank.version_folder import read_record
from foreword.errors import CorruptFile, PublishConflict, UsageError

_CLAIM = re.compile(r"[0-9]{4,8}")
_REMOVED = re.compile(rb"removed ([0-9]{4,8})\n")
_SHORTEST_CURRENT = len("0001-0123456789ab\n")
"""Bytes of a ``current`` that names a version; one that says ``removed`` has fewer."""

_SWEPT = ("files", "versions")
_OWNED = ("files", "versions", "claims", CURRENT, SPLIT, USED)
_WRITER_SECONDS = 86400.0
"""Objects that are younger may be those of a writer at work, where one has claimed a number and not used it."""


class RemoteStore:
    """``<root>/<task>/`` with ``files/<sha256>``, ``versions/<version>/task.json``, ``claims/<NNNN>`` and
    ``current``."""

    def __init__(self, url: str, cache: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._url = url.rstrip("/")
        self._fs, self._root = _connect(self._url)
        self._cache = cache / hashlib.sha256(self._url.encode()).hexdigest()[:16]

    @property
    def location(self) -> str:
        return self._url

    def tasks(self) -> list[str]:
        return sorted(self._list_current())

    def versions(self, task: str) -> list[str]:
        paths = [path.split("/") for path in self._find(f"{task}/versions", maxdepth=2)]
        return [parts[0] for parts in paths if is_version(parts[0]) and parts[1:] == [RECORD]]

    def known(self) -> list[str]:
        return sorted(filter(is_name, self._list("")))

    def read_current(self, task: str) -> bytes | None:
        data = self.read_file(task, CURRENT)
        return None if data is None or _REMOVED.fullmatch(data) else data

    def write_current(self, task: str, version: str) -> None:
        self.write_file(task, CURRENT, f"{version}\n".encode())

    def read_file(self, task: str, file: str) -> bytes | None:
        return self._get(f"{task}/{file}")

    def write_file(self, task: str, file: str, data: bytes) -> None:
        self._put(f"{task}/{file}", data)

    def remove_file(self, task: str, file: str) -> None:
        self._delete(f"{task}/{file}")

    def record(self, task: str, version: str) -> dict[str, Any]:
        with suppress(CorruptFile):
            return read_record(self._cached(task, version), task, version)
        return self._get_record(task, version)[1]

    def folder(self, task: str, version: str, *, fresh: bool = False) -> Path:
        folder = self._cached(task, version)
        if fresh or not _is_complete(folder, task, version):
            self._fetch(task, version, folder)
        return folder

    def lock(self, task: str) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def staging_folder(self, task: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="foreword-publish-") as folder:
            yield Path(folder)

    def claim(self, task: str) -> int:
        number = self._highest(task) + 1
        if self._removed_up_to(task) is not None:
            self.sweep(task)
        try:
            self._create(f"{task}/claims/{number:04d}", b"")
        except FileExistsError as error:
            raise PublishConflict(
                f"{self._url}/{task}: another writer is publishing number {number:04d} now; publish again."
            ) from error
        return number

    def commit(self, task: str, version: str, folder: Path) -> None:
        record = read_record(folder, task, version)
        for name, entry in record["files"].items():
            path = f"{task}/files/{entry['sha256']}"
            if self._size(path) != entry["size"]:
                self._put(path, (folder / name).read_bytes())
        try:
            self._create(f"{task}/versions/{version}/{RECORD}", (folder / RECORD).read_bytes())
        except FileExistsError as error:
            raise PublishConflict(f"{self._url}/{task}: another writer published {version}; publish again.") from error

    def remove_version(self, task: str, version: str) -> None:
        mark = f"{task}/versions/{version}"
        listed = self._digests_of(task, version)
        self._delete(f"{mark}/{RECORD}")
        kept = {sha for other in self.versions(task) if other != version for sha in self._digests_of(task, other)}
        for sha in listed - kept:
            self._delete(f"{task}/files/{sha}")
        self._delete(mark)
        shutil.rmtree(self._cached(task, version), ignore_errors=True)

    def remove_task(self, task: str) -> None:
        self._put(f"{task}/{CURRENT}", f"removed {self._highest(task):04d}\n".encode())
        self.sweep(task)

    def was_removed(self, task: str, version: str | None) -> bool:
        if version is None:
            return self._removed_up_to(task) is not None
        claimed = matching_versions(version.partition("-")[0], self._claims(task))
        return bool(claimed) and bool(self.leftovers(task))

    def leftovers(self, task: str) -> list[str]:
        return [f"{task}/{path}" for path in self._leftovers(task)]

    def sweep(self, task: str) -> None:
        was_removed = self._removed_up_to(task) is not None
        for path in self._leftovers(task):
            if path != CURRENT or self._removed_up_to(task) is not None:
                self._delete(f"{task}/{path}")
        if was_removed:
            shutil.rmtree(self._cache / task, ignore_errors=True)

    def check_writable(self) -> None:
        trial = temporary_name()
        self._put(trial, b"")
        self._delete(trial)

    def etag(self) -> object:
        # Which entry of a listing tells a change (ETag, generation, time) differs by store: take them all.
        return tuple(sorted((task, repr(sorted(info.items()))) for task, info in self._list_current().items()))

    def _claims(self, task: str) -> list[str]:
        return [name for name in self._list(f"{task}/claims") if _CLAIM.fullmatch(name)]

    def _highest(self, task: str) -> int:
        """The highest number that was ever given to a version of a task, as far as the store tells."""
        numbers = [*map(int, self._claims(task)), *map(version_number, self.versions(task))]
        return max([*numbers, self._removed_up_to(task) or 0])

    def _removed_up_to(self, task: str) -> int | None:
        """The number up to which all versions were removed with their task; ``None`` if a version is served, or none
        ever was."""
        found = _REMOVED.fullmatch(self._get(f"{task}/{CURRENT}") or b"")
        return int(found[1]) if found else None

    def _leftovers(self, task: str) -> list[str]:
        """Objects that nothing served needs, in the order in which they may be deleted: descriptions of versions first,
        so that half a version is never read, and a ``current`` that says ``removed`` last.

        What a writer may be about to use stays: while a number is claimed that no version has, young objects."""
        objects, removed = self._find(task), self._removed_up_to(task)
        served = CURRENT in objects and removed is None
        kept = self.versions(task) if served else []
        used = {f"files/{sha}" for version in kept for sha in self._digests_of(task, version)}
        floor = removed or 0
        waiting = {number for number in map(int, self._claims(task)) if number > floor} - {*map(version_number, kept)}
        at_work = bool(waiting) or CURRENT not in objects
        found = []
        for path in objects:
            folder, _, name = path.partition("/")
            name = name.partition("/")[0]
            if folder not in (_SWEPT if served else _OWNED) or path in used or name in kept:
                continue
            number = name.partition("-")[0]
            over = folder in ("claims", "versions") and _CLAIM.fullmatch(number) is not None and int(number) <= floor
            if over or not (at_work and self._is_young(f"{task}/{path}")):
                found.append(path)
        return sorted(found, key=lambda path: (path == CURRENT, not path.endswith(f"/{RECORD}"), path))

    def _is_young(self, path: str) -> bool:
        """Whether an object may have been written by a writer that is at work; where a store does not tell, it may."""
        try:
            return self._clock() - _call(self._fs.modified, self._path(path)).timestamp() < _WRITER_SECONDS
        except OSError:
            return True

    def _cached(self, task: str, version: str) -> Path:
        return self._cache / task / "versions" / version

    def _get_record(self, task: str, version: str) -> tuple[bytes, dict[str, Any]]:
        path = f"{task}/versions/{version}/{RECORD}"
        data = self._get(path)
        if data is None:
            raise CorruptFile(f"{self._url}/{path}: expected the description of a version, found none; {MEND}.")
        return data, parse_record(data, f"{self._url}/{path}", task, version)

    def _fetch(self, task: str, version: str, folder: Path) -> None:
        """Download a version into the cache; files are checked before they are written, ``task.json`` comes last."""
        data, record = self._get_record(task, version)
        for name, entry in record["files"].items():
            make_folders((folder / name).parent)
            durable_write(folder / name, self._fetch_file(task, version, name, entry))
        durable_write(folder / RECORD, data)

    def _fetch_file(self, task: str, version: str, name: str, entry: dict[str, Any]) -> bytes:
        # A bank copied here from a local disk keeps its files beside task.json: that serves as well.
        paths = (f"{task}/files/{entry['sha256']}", f"{task}/versions/{version}/{name}")
        for path in paths:
            data = self._get(path)
            if data is not None:
                check_bytes(data, entry["size"], entry["sha256"], f"{self._url}/{path} ({name})")
                return data
        raise CorruptFile(f"{self._url}/{paths[0]} ({name}): expected {entry['size']} bytes, found none; {MEND}.")

    def _digests_of(self, task: str, version: str) -> set[str]:
        with suppress(CorruptFile):
            return {entry["sha256"] for entry in self.record(task, version)["files"].values()}
        return set()

    def _list_current(self) -> dict[str, dict[str, Any]]:
        """The listing's entry of every ``current``, by task."""
        self._fs.invalidate_cache()
        try:
            found = _call(self._fs.find, self._root, maxdepth=2, detail=True)
        except FileNotFoundError:
            return {}
        currents = {}
        for path, info in found.items():
            parts = path.rstrip("/").split("/")
            if parts[-1] == CURRENT and len(parts) > 1 and is_name(parts[-2]) and info["size"] >= _SHORTEST_CURRENT:
                currents[parts[-2]] = info
        return currents

    def _list(self, path: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            return [
                entry.rstrip("/").rpartition("/")[2] for entry in _call(self._fs.ls, self._path(path), detail=False)
            ]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _find(self, path: str, maxdepth: int | None = None) -> list[str]:
        """Paths of all objects below a path, relative to it."""
        self._fs.invalidate_cache()
        above = f"{self._path(path)}/"
        with suppress(FileNotFoundError):
            return [found.removeprefix(above) for found in _call(self._fs.find, above[:-1], maxdepth=maxdepth)]
        return []

    def _size(self, path: str) -> int | None:
        self._fs.invalidate_cache()
        with suppress(FileNotFoundError):
            return _call(self._fs.info, self._path(path)).get("size")
        return None

    def _get(self, path: str) -> bytes | None:
        with suppress(FileNotFoundError, NotADirectoryError):
            return _call(self._fs.cat_file, self._path(path))
        return None

    def _put(self, path: str, data: bytes) -> None:
        _call(self._fs.pipe_file, self._path(path), data)

    def _create(self, path: str, data: bytes) -> None:
        """A conditional put: raises `FileExistsError` when the object is there."""
        _call(self._fs.pipe_file, self._path(path), data, mode="create")

    def _delete(self, path: str) -> None:
        self._fs.invalidate_cache()
        with suppress(FileNotFoundError):
            _call(self._fs.rm, self._path(path), recursive=True)

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"


def _connect(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        fs, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"bank {url}: expected a URL that fsspec can open, found none ({error}); install the package for "
            "it, or check the spelling."
        ) from error
    return fs, str(root).rstrip("/")


def _call(verb: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a method of the file system; errors of its package are raised as `OSError`."""
    try:
        return verb(*args, **options)
    except OSError:
        raise
    except Exception as error:
        raise OSError(None, f"{type(error).__name__}: {error}") from error


def _is_complete(folder: Path, task: str, version: str) -> bool:
    try:
        for name, entry in read_record(folder, task, version)["files"].items():
            check_file(folder / name, **entry)
    except CorruptFile:
        return False
    return True
