"""A bank: versioned tasks, published once and served everywhere. The CLI and the server use this class."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from foreword.bank.format import check_version, outline_version, read_version, write_version
from foreword.bank.local import LocalStore
from foreword.bank.names import check_name, hint, is_name, is_version, matching, number_of, split_ref
from foreword.bank.prefix_file import read_prefix
from foreword.bank.remote import RemoteStore
from foreword.bank.store import Store
from foreword.bank.tensor_file import Load, load_tensors
from foreword.bank.version_files import split_source
from foreword.core import KVPrefix, ModelIdentity, Task
from foreword.errors import BankError, CorruptFile, PublishConflict, UnknownTask, UsageError
from foreword.home import home
from foreword.openmp import release_openmp_threads

_NOTHING_PUBLISHED = "nothing was published; the version served before is still served"
_NOTHING_READ = "check that the place exists and may be read"


class Bank:
    """Tasks under one root; every task has immutable versions, and one of them is served.

    Args:
        root: a folder (also as ``file://`` or ``local://``), or the fsspec URL of an object store.
        cache: where versions from an object store are kept; by default ``cache/bank`` in Foreword's home.
        load: how tensors are read; `foreword.bank.arrays.load_arrays` for a process without PyTorch.

    Every method raises `BankError` when the place cannot be read or written.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, cache: str | os.PathLike[str] | None = None, load: Load = load_tensors
    ) -> None:
        self._store = _open_store(os.fspath(root), Path(cache) if cache else home() / "cache" / "bank")
        self.load_tensors = load

    @property
    def place(self) -> str:
        """The folder or the URL."""
        return self._store.place

    def __repr__(self) -> str:
        return f"Bank({self._store.place!r})"

    def publish(self, task: Task, *, replace: bool = False, reserved: Collection[str] = ()) -> Task:
        """Store a task as a new version and serve it from now on.

        Args:
            task: its ``version`` is ignored.
            replace: also over a task that was made for another model.
            reserved: names that requests use for something else, such as the base model's.

        Returns:
            the same task with its ``version``.

        Raises:
            UsageError: a bad name, or content that cannot be stored.
            PublishConflict: the name is reserved or belongs to another model, or another writer won.
        """
        check_free(task.name, reserved)
        store = self._store
        with self._door(_NOTHING_PUBLISHED), store.lock(task.name), store.workspace(task.name) as folder:
            if not replace:
                self._check_model(task)
            published = write_version(folder, task, number=store.claim(task.name))
            self._serve(task.name, published.version, folder)
        release_openmp_threads()  # an engine may be running in another thread
        return published

    def load(self, ref: str) -> Task:
        """The task ``name`` or ``name@version``, where the version may be its number. Raises `UnknownTask`,
        `CorruptFile`."""
        with self._door(_NOTHING_READ):
            name, version = self._resolve(ref)
            task = read_version(self._store.folder(name, version), name, version, self.load_tensors)
        release_openmp_threads()  # an engine may be running in another thread
        return task

    def outline(self, ref: str) -> Task:
        """The task as `load` gives it, without the values of its prefixes (see `outline_prefix`): for engines whose
        workers read them by themselves. Raises as `load` does, but for no fault of those values."""
        with self._door(_NOTHING_READ):
            name, version = self._resolve(ref)
            return outline_version(self._store.folder(name, version), name, version, self.load_tensors)

    def prefix(self, source: str) -> KVPrefix:
        """One prefix without the rest of its task, by what it remembers as its source.

        Raises `UnknownTask` for a source that no bank gives, `CorruptFile`.
        """
        found = split_source(source)
        if found is None:
            raise UnknownTask(
                f"{source[:80]!r} names no prefix of a bank; load the task, and take its prefix's source."
            )
        name, version, file = found
        with self._door(_NOTHING_READ):
            prefix = read_prefix(self._store.folder(name, version) / file, source, self.load_tensors)
        release_openmp_threads()  # an engine may be running in another thread
        return prefix

    def describe(self, ref: str) -> dict[str, Any]:
        """The content of ``task.json``, without loading tensors. Raises as `load` does."""
        with self._door(_NOTHING_READ):
            return self._store.record(*self._resolve(ref))

    def names(self) -> list[str]:
        """All tasks, sorted."""
        with self._door(_NOTHING_READ):
            return sorted(self._store.tasks())

    def versions(self, name: str) -> list[str]:
        """All versions of a task, oldest first. Raises `UnknownTask`."""
        with self._door(_NOTHING_READ):
            self._current(name)
            return self._sorted_versions(name)

    def current(self, name: str) -> str:
        """The version that is served. Raises `UnknownTask`, or `CorruptFile` when ``current`` is damaged."""
        with self._door(_NOTHING_READ):
            return self._check_current(name, self._current(name))

    def rollback(self, name: str, version: str | None = None) -> str:
        """Serve any stored version, by default the one before the current, and return it.

        Raises `UnknownTask` when there is no such task or version, or none before.
        """
        with self._writing(name, "the version served before is still served") as raw:
            target = self._find_version(name, version) if version else self._before(name, raw)
            self._store.write_current(name, target)
        return target

    def remove(self, name: str, version: str | None = None) -> None:
        """Delete a whole task, or one version that is not served.

        Raises:
            UnknownTask: no such task or version.
            UsageError: the version is the one that is served.
        """
        with self._writing(name, "it may be there in part, so remove it again") as raw:
            if version is None:
                return self._store.remove_task(name)
            target = self._find_version(name, version)
            if target.encode() == raw.strip():
                raise UsageError(f"{name}@{target} is being served; roll back to another version first.")
            self._store.remove_version(name, target)

    def verify(self, name: str | None = None) -> list[str]:
        """Read every byte of one task or of all, and say what is wrong; empty when all is whole."""
        with self._door(_NOTHING_READ):
            if name is not None:
                self._current(name)
            names = [name] if name is not None else sorted(self._store.tasks())
            return [problem for each in names for problem in self._problems(each)]

    def try_write(self) -> None:
        """Raise `BankError` unless something could be published here; publishes nothing."""
        with self._door("nothing can be published there; make it writable, or choose another with --bank"):
            self._store.try_write()

    def stamp(self) -> object:
        """A cheap value that changes whenever another version of any task is served, or a task is removed."""
        with self._door(_NOTHING_READ):
            return self._store.stamp()

    @contextmanager
    def _door(self, after: str) -> Iterator[None]:
        """Turn an `OSError` into one sentence that ends with what is true now."""
        try:
            yield
        except OSError as error:
            where = error.filename or self._store.place
            raise BankError(f"{where}: {error.strerror or error}; {after}.") from error

    @contextmanager
    def _writing(self, name: str, after: str) -> Iterator[bytes]:
        """Keep other writers of an existing task out, and give what its ``current`` holds."""
        with self._door(after):
            self._current(name)
            with self._store.lock(name):
                yield self._current(name)

    def _current(self, name: str) -> bytes:
        raw = self._store.read_current(name) if is_name(name) else None
        if raw is None:
            known = sorted(self._store.tasks())
            raise UnknownTask(f"no task {name!r} in {self._store.place}: {hint(name, known, 'foreword bank list')}")
        return raw

    def _check_current(self, name: str, raw: bytes) -> str:
        version = raw.decode(errors="replace").strip()
        if not is_version(version):
            raise CorruptFile(self._bad_current(name, version))
        return version

    def _bad_current(self, name: str, found: str) -> str:
        return (
            f"{self._store.place}/{name}/current: expected the name of a stored version, found "
            f"{found[:40]!r}; choose one with `foreword bank rollback {name} --version VERSION`."
        )

    def _resolve(self, ref: str) -> tuple[str, str]:
        name, wanted = split_ref(ref)
        raw = self._current(name)
        return name, self._check_current(name, raw) if wanted is None else self._find_version(name, wanted)

    def _find_version(self, name: str, wanted: str) -> str:
        known = self._sorted_versions(name)
        found = matching(wanted, known)
        if len(found) > 1:
            raise UnknownTask(f"{name}@{wanted} may be {' or '.join(found)}; give the full version.")
        if not found:
            raise UnknownTask(f"no version {wanted!r} of {name!r}: {hint(wanted, known, f'foreword bank show {name}')}")
        return found[0]

    def _sorted_versions(self, name: str) -> list[str]:
        return sorted(self._store.versions(name), key=lambda version: (number_of(version), version))

    def _before(self, name: str, raw: bytes) -> str:
        current = self._check_current(name, raw)
        older = [v for v in self._sorted_versions(name) if number_of(v) < number_of(current)]
        if not older:
            raise UnknownTask(f"{name!r} has no version before {current}; publish another one.")
        return older[-1]

    def _check_model(self, task: Task) -> None:
        """Raise `PublishConflict` when the name serves another model; a damaged version protects nothing."""
        try:
            raw = self._store.read_current(task.name)
            if raw is None:
                return
            record = self._store.record(task.name, self._check_current(task.name, raw))
        except CorruptFile:
            return
        served, model = ModelIdentity.from_json(record["model"]), task.prefix.model
        if not _related(served, model):
            raise PublishConflict(
                f"the task {task.name!r} serves {served.architecture} with {served.weights[:12]}, found "
                f"{model.architecture} with {model.weights[:12]}; choose another name, or pass --replace."
            )

    def _serve(self, name: str, version: str, folder: Path) -> None:
        """Make the version written in ``folder`` the current one, or leave no trace of it."""
        try:
            self._store.commit(name, version, folder)
            self._check_race(name, version)
            self._store.write_current(name, version)
        except (OSError, KeyboardInterrupt) as error:
            if self._store.read_current(name) == f"{version}\n".encode():
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise BankError(
                    f"{name}@{version} is served now, but {self._store.place} did not confirm it "
                    f"({error.strerror}); check the disk, then publish again."
                ) from error
            with suppress(OSError):
                self._store.remove_version(name, version)
            raise

    def _check_race(self, name: str, version: str) -> None:
        """Raise `PublishConflict` when a writer with a later number was faster, as object stores allow."""
        served = (self._store.read_current(name) or b"").decode(errors="replace").strip()
        if is_version(served) and number_of(served) > number_of(version):
            raise PublishConflict(
                f"{name}@{version} was stored but is not served: another writer published {served} "
                f"meanwhile; `foreword bank rollback {name} --version {version}` serves it."
            )

    def _problems(self, name: str) -> list[str]:
        problems, versions = [], self._sorted_versions(name)
        try:
            current = self._check_current(name, self._current(name))
            if current not in versions:
                problems.append(self._bad_current(name, current))
        except CorruptFile as error:
            problems.append(str(error))
        for version in versions:
            try:
                problems += check_version(self._store.folder(name, version, fresh=True), name, version)
            except CorruptFile as error:
                problems.append(str(error))
        return problems


def check_free(name: str, reserved: Collection[str]) -> None:
    """Raise UsageError for a bad name, PublishConflict for one that requests use for something else."""
    check_name(name)
    if name in {other.lower() for other in reserved}:
        raise PublishConflict(f"the name {name!r} belongs to the base model; choose another name.")


def _open_store(root: str, cache: Path) -> Store:
    # A file URL names a folder of this machine: it is the same bank as its path, with the same guarantees.
    protocol, separator, path = root.partition("://")
    if not separator or protocol in ("file", "local"):
        return LocalStore(Path(path or root).expanduser())
    return RemoteStore(root, cache.expanduser())


def _related(one: ModelIdentity, other: ModelIdentity) -> bool:
    same_weights = {one.weights, *one.lineage} & {other.weights, *other.lineage}
    return one.architecture == other.architecture and bool(same_weights)
