"""A bank on an object store, by any fsspec URL, read through a cache folder on the local disk.

Files are stored under their digest, then ``task.json`` makes the version exist, then ``current`` serves it.
Objects appear whole or not at all, so a publish killed at any moment leaves the version served before.

Writers: the number of a version is claimed with a conditional put (``mode="create"`` of fsspec: S3, Google
Cloud Storage, Azure), so that two writers never share one and no version is lost. fsspec cannot replace
``current`` conditionally, and where a file system has no conditional put the claim is not safe either:
keep to **one writer a task at a time** there.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from foreword.bank.digests import check_bytes, check_file
from foreword.bank.durable import durable_write, make_folders, temporary_name
from foreword.bank.json_document import MEND
from foreword.bank.names import is_name, is_version, version_number
from foreword.bank.record import parse_record
from foreword.bank.version_files import RECORD
from foreword.bank.version_folder import read_record
from foreword.errors import CorruptFile, PublishConflict, UsageError


class RemoteStore:
    """``<root>/<task>/`` with ``files/<sha256>``, ``versions/<version>/task.json``, ``claims/<NNNN>`` and
    ``current``."""

    def __init__(self, url: str, cache: Path) -> None:
        self._url = url.rstrip("/")
        self._fs, self._root = _connect(self._url)
        self._cache = cache / hashlib.sha256(self._url.encode()).hexdigest()[:16]

    @property
    def location(self) -> str:
        return self._url

    def tasks(self) -> list[str]:
        return sorted(self._list_current())

    def versions(self, task: str) -> list[str]:
        return [name for name in self._list(f"{task}/versions") if is_version(name)]

    def read_current(self, task: str) -> bytes | None:
        return self.read_file(task, "current")

    def write_current(self, task: str, version: str) -> None:
        self.write_file(task, "current", f"{version}\n".encode())

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
        claimed = [int(name) for name in self._list(f"{task}/claims") if name.isascii() and name.isdigit()]
        number = max([*claimed, *map(version_number, self.versions(task))], default=0) + 1
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
        self._delete(f"{task}/current")
        self._delete(task)
        shutil.rmtree(self._cache / task, ignore_errors=True)

    def check_writable(self) -> None:
        trial = temporary_name()
        self._put(trial, b"")
        self._delete(trial)

    def etag(self) -> object:
        # Which entry of a listing tells a change (ETag, generation, time) differs by store: take them all.
        return tuple(sorted((task, repr(sorted(info.items()))) for task, info in self._list_current().items()))

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
            if parts[-1] == "current" and len(parts) > 1 and is_name(parts[-2]):
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
