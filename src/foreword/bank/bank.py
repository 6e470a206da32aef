"""`Bank`: a versioned store of tasks. The command line and the server use this class."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from foreword.bank.lifetimes import Lifetimes
from foreword.bank.local import LocalStore
from foreword.bank.names import (
    NAMES_SECONDS,
    check_name,
    is_name,
    is_version,
    matching_versions,
    split_ref,
    suggest,
    version_number,
)
from foreword.bank.prefix_file import read_prefix
from foreword.bank.remote import RemoteStore
from foreword.bank.split import SPLIT, Split
from foreword.bank.store import Store
from foreword.bank.tensor_file import TensorLoader, load_tensors
from foreword.bank.version_files import parse_source
from foreword.bank.version_folder import (
    check_version,
    prove_version,
    read_version,
    read_version_metadata,
    write_version,
)
from foreword.core import KVPrefix, ModelIdentity, Task
from foreword.core.overview import Overview, WithOverview, join_some
from foreword.errors import BankError, CorruptFile, PublishConflict, UnknownTask, UsageError
from foreword.home import default_bank, home
from foreword.openmp import release_openmp_threads

_NOT_PUBLISHED = "nothing was published; the version served before is still served"
SPLIT_SECONDS = 5.0
_NEVER_LISTED: tuple[float, list[str]] = (float("-inf"), [])
_CHECK_LOCATION = "check that the place exists and may be read"
_NOT_REMOVED = "it is there whole or not at all; remove it again to finish"


class Bank(WithOverview):
    """Tasks under one root; every task has immutable versions, one of which is the current one and is served.

    >>> bank = foreword.Bank()
    >>> "mood" in bank.names()
    True
    >>> bank.load("mood").name
    'mood'

    Args:
        root: a folder (also as ``file://`` or ``local://``), or the fsspec URL of an object store; by default the
            bank of the commands: ``$FOREWORD_BANK``, else ``bank`` in Foreword's home.
        cache: where versions from an object store are kept; by default ``cache/bank`` in Foreword's home.
        load: reads tensors; `foreword.bank.arrays.load_arrays` for a process without PyTorch.
        clock: seconds since 1970, for tasks with a time to live.

    Every method raises `BankError` when the root cannot be read or written.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        cache: str | os.PathLike[str] | None = None,
        load: TensorLoader = load_tensors,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = _open_store(
            os.fspath(root if root is not None else default_bank()),
            Path(cache) if cache else home() / "cache" / "bank",
            clock,
        )
        self._lifetimes = Lifetimes(self._store, clock)
        self._without_ttl: set[str] = set()
        self._splits: dict[str, tuple[float, bytes | None]] = {}
        self._recent_names = _NEVER_LISTED
        self.load_tensors = load

    @classmethod
    def for_engine(cls, engine: str, root: str | os.PathLike[str] | None = None) -> Bank:
        """A bank that loads tensors as an engine needs them: as numpy arrays for ``llamacpp``, which has no torch."""
        if engine != "llamacpp":
            return cls(root)
        from foreword.bank.arrays import load_arrays

        return cls(root, load=load_arrays)

    @property
    def location(self) -> str:
        """The folder or the URL."""
        return self._store.location

    def __repr__(self) -> str:  # reads nothing: the bank may be far away
        return f"Bank({self._store.location!r})"

    def overview(self) -> Overview:
        """Where it is, and the names of its tasks."""
        names = self.names()
        return Overview(f"Bank {self.location!r}", {"tasks": f"{len(names)}: {join_some(names)}" if names else "none"})

    def publish(self, task: Task, *, replace: bool = False, reserved: Collection[str] = ()) -> Task:
        """Store a task as a new version and serve it from now on.

        Args:
            task: its ``version`` is ignored.
            replace: also over a task that was made for another model.
            reserved: names that no task may have, such as the base model's.

        Returns:
            the same task with its ``version``.

        Raises:
            UsageError: a bad name, or content that cannot be stored.
            PublishConflict: the name is reserved or belongs to another model, or another writer won.
        """
        check_free(task.name, reserved)
        store = self._store
        with self._bank_errors(_NOT_PUBLISHED), store.lock(task.name), store.staging_folder(task.name) as folder:
            if not replace:
                self._check_model(task)
            published = write_version(folder, task, number=store.claim(task.name))
            self._commit(task.name, published.version, folder)
        release_openmp_threads()  # an engine may be running in another thread
        self._recent_names = _NEVER_LISTED
        return published

    def load(self, ref: str) -> Task:
        """The task ``name`` or ``name@version``, where the version may be its number. Raises `UnknownTask`,
        `ExpiredTask`, `CorruptFile`."""
        task = self._read(ref, read_version)
        release_openmp_threads()  # an engine may be running in another thread
        return task

    def load_metadata(self, ref: str) -> Task:
        """The task of `load` with the keys and values of its prefixes on the meta device (see `read_prefix_metadata`):
        for engines whose workers read them by `prefix`. Raises as `load` does, unless the error is in those values."""
        return self._read(ref, read_version_metadata)

    def prefix(self, source: str) -> KVPrefix:
        """One prefix without the rest of its task, by its `KVPrefix.source`.

        Raises `UnknownTask` for a source that no bank gives, `CorruptFile`.
        """
        parsed = parse_source(source)
        if parsed is None:
            raise UnknownTask(
                f"{source[:80]!r} names no prefix of a bank; load the task, and take its prefix's source."
            )
        name, version, file = parsed
        with self._bank_errors(_CHECK_LOCATION):
            prefix = read_prefix(self._store.folder(name, version) / file, source, self.load_tensors)
        release_openmp_threads()  # an engine may be running in another thread
        return prefix

    def describe(self, ref: str) -> dict[str, Any]:
        """The content of ``task.json``, without loading tensors. Raises as `load` does."""
        with self._bank_errors(_CHECK_LOCATION):
            return self._store.record(*self._resolve(ref))

    def expires(self, ref: str) -> float | None:
        """When a task expires if it is not used until then, in seconds since 1970; ``None`` if never."""
        with self._bank_errors(_CHECK_LOCATION):
            return self._lifetimes.expires(self._store.record(*self._resolve(ref)))

    def has_expired(self, ref: str) -> bool:
        """Whether the time to live of a task is over."""
        with self._bank_errors(_CHECK_LOCATION):
            return self._lifetimes.has_expired(self._store.record(*self._resolve(ref)))

    def check_alive(self, ref: str) -> None:
        """Raise `ExpiredTask` for a task whose time to live is over."""
        with self._bank_errors(_CHECK_LOCATION):
            self._lifetimes.check(self._store.record(*self._resolve(ref)))

    def record_use(self, task: Task) -> None:
        """Let a task with a time to live begin it anew; written at most once in a twentieth of that time.

        In a bank that cannot be written it counts from the last use that is recorded. Raises `ExpiredTask`.
        """
        if task.ttl is not None:
            with suppress(OSError):
                self._lifetimes.record_use(self._store.record(task.name, task.version))

    def prune(
        self, names: Sequence[str] | None = None, limit: int | None = None, *, dry_run: bool = False
    ) -> list[str]:
        """Remove tasks all of whose versions have expired; one with a version that never does stays.

        Args:
            names: of the tasks to look at; all if ``None``.
            limit: tasks that are removed at most.
            dry_run: remove nothing.

        Returns: their names. Damaged tasks are left alone.
        """
        removed: list[str] = []
        for name in self.names() if names is None else names:
            if limit is not None and len(removed) >= limit:
                break
            with suppress(UnknownTask, CorruptFile), self._bank_errors(_CHECK_LOCATION):
                if self._has_expired(name):
                    if not dry_run:
                        self._prune_task(name)
                    removed.append(name)
        return removed

    def sweep(self, *, dry_run: bool = False) -> list[str]:
        """Delete what interrupted commands left, but nothing of a writer at work: unfinished and removed versions.

        Args:
            dry_run: delete nothing.

        Returns: their paths under the root. Whole versions of tasks that are served are never among them.
        """
        found: list[str] = []
        with self._bank_errors("sweep again"):
            for name in sorted(self._store.known()):
                if self._store.leftovers(name):  # a look without the lock, which most tasks do not need
                    with self._store.lock(name):
                        found += self._store.leftovers(name)
                        if not dry_run:
                            self._store.sweep(name)
        return found

    def split(self, name: str) -> Split | None:
        """The versions that are served side by side, or ``None`` if all requests go to the current one.

        Raises `UnknownTask`, `CorruptFile`.
        """
        return self.served(name)[1]

    def served(self, name: str) -> tuple[str, Split | None]:
        """The current version and the `split`, in one look at the task. Raises as they do."""
        with self._bank_errors(_CHECK_LOCATION):
            raw = self._read_current(name)
            return self._parse_current(name, raw), self._parse_split(name, raw)

    def set_split(self, name: str, weights: Mapping[str, float]) -> Split:
        """Serve several versions side by side; the one with the largest weight becomes the current one.

        Args:
            weights: by version or its number, in any unit.

        Raises: `UnknownTask` for an unknown version, `UsageError` for weights that are no split, `CorruptFile` for a
        damaged version.
        """
        with self._exclusive(name, "the versions served before are still served") as raw:
            found = {self._find_version(name, version): weight for version, weight in weights.items()}
            if len(found) < len(weights):
                raise UsageError(f"two of {', '.join(weights)} are the same version; give each one weight.")
            split = Split.of(found)
            for version in found:
                self._prove(name, version)
            # In this order, a kill between the two leaves the current version alone, and no split that was ended.
            self._store.write_file(name, SPLIT, split.to_json())
            if raw.strip() != split.current.encode():
                self._store.write_current(name, split.current)
            self._splits.pop(name, None)
        return split

    def names(self) -> list[str]:
        """All tasks, sorted."""
        with self._bank_errors(_CHECK_LOCATION):
            return sorted(self._store.tasks())

    def recent_names(self) -> list[str]:
        """All tasks, sorted, up to `NAMES_SECONDS` old: for suggestions, which every wrong name asks for."""
        listed_at, names = self._recent_names
        if (now := time.monotonic()) - listed_at > NAMES_SECONDS:
            names = self.names()
            self._recent_names = now, names
        return names

    def versions(self, name: str) -> list[str]:
        """All versions of a task, oldest first. Raises `UnknownTask`."""
        with self._bank_errors(_CHECK_LOCATION):
            self._read_current(name)
            return self._sorted_versions(name)

    def current(self, name: str) -> str:
        """The current version, which is served. Raises `UnknownTask`, or `CorruptFile` when ``current`` is damaged."""
        with self._bank_errors(_CHECK_LOCATION):
            return self._parse_current(name, self._read_current(name))

    def rollback(self, name: str, version: str | None = None) -> str:
        """Serve any stored version to all requests, by default the one before the current, and return it.

        Every byte of it is read first. Raises `UnknownTask` when there is no such task or version, or none before,
        `CorruptFile` for a damaged one.
        """
        with self._exclusive(name, "the version served before is still served") as raw:
            target = self._find_version(name, version) if version else self._previous_version(name, raw)
            self._prove(name, target)
            self._serve(name, target)
        return target

    def remove(self, name: str, version: str | None = None) -> None:
        """Delete a whole task, or one version that is not served; also finish a removal that was interrupted.

        Raises:
            UnknownTask: no such task or version.
            UsageError: the version is the one that is served.
        """
        try:
            with self._exclusive(name, _NOT_REMOVED) as raw:
                self._remove(name, version, raw)
        except UnknownTask:
            with self._bank_errors(_NOT_REMOVED):
                if not (is_name(name) and self._store.was_removed(name, version)):
                    raise
                with self._store.lock(name):
                    self._store.sweep(name)

    def verify(self, name: str | None = None) -> list[str]:
        """Read every byte of one task or of all. Returns a sentence for each error; an empty list if there is none."""
        with self._bank_errors(_CHECK_LOCATION):
            if name is not None:
                self._read_current(name)
            names = [name] if name is not None else sorted(self._store.tasks())
            return [problem for each in names for problem in self._verify_task(each)]

    def check_writable(self) -> None:
        """Raise `BankError` unless something could be published here; publishes nothing."""
        with self._bank_errors("nothing can be published there; make it writable, or choose another with --bank"):
            self._store.check_writable()

    def etag(self) -> object:
        """A value, cheap to compare, that changes when the current version of any task does, or a task is removed."""
        with self._bank_errors(_CHECK_LOCATION):
            return self._store.etag()

    @contextmanager
    def _bank_errors(self, outcome: str) -> Iterator[None]:
        """Turn an `OSError` into a `BankError` whose message ends with ``outcome``."""
        try:
            yield
        except OSError as error:
            where = error.filename or self._store.location
            raise BankError(f"{where}: {error.strerror or error}; {outcome}.") from error

    @contextmanager
    def _exclusive(self, name: str, outcome: str) -> Iterator[bytes]:
        """Lock an existing task against other writers. Yields the bytes of its ``current``."""
        with self._bank_errors(outcome):
            self._read_current(name)
            with self._store.lock(name):
                yield self._read_current(name)

    def _remove(self, name: str, version: str | None, raw: bytes) -> None:
        if version is None:
            self._recent_names = _NEVER_LISTED
            return self._store.remove_task(name)
        target = self._find_version(name, version)
        if target.encode() == raw.strip():
            raise UsageError(f"{name}@{target} is being served; roll back to another version first.")
        split = self._parse_split(name, raw)
        if split is not None and target in split.weights:
            raise UsageError(f"{name}@{target} is served by a split; end that: foreword bank split {name} --off.")
        self._store.remove_version(name, target)

    def _read(self, ref: str, read: Callable[[Path, str, str, TensorLoader], Task]) -> Task:
        """Read a version that has not expired; one that another writer replaced or removed meanwhile is not damaged."""
        with self._bank_errors(_CHECK_LOCATION):
            name, version = self._resolve(ref)
            try:
                self._lifetimes.check(self._store.record(name, version))
                return read(self._store.folder(name, version), name, version, self.load_tensors)
            except (CorruptFile, FileNotFoundError):
                if self._resolve(ref) == (name, version):
                    raise
        return self._read(ref, read)

    def _prove(self, name: str, version: str) -> None:
        try:
            prove_version(self._store.folder(name, version, fresh=True), name, version, self.load_tensors)
        except CorruptFile as error:
            raise CorruptFile(f"{name}@{version} is damaged and was not served: {error}") from error

    def _read_current(self, name: str) -> bytes:
        raw = self._store.read_current(name) if is_name(name) else None
        if raw is None:
            near = suggest(name, self.recent_names(), "foreword bank list")
            raise UnknownTask(f"no task {name!r} in {self._store.location}: {near}")
        return raw

    def _parse_current(self, name: str, raw: bytes) -> str:
        version = raw.decode(errors="replace").strip()
        if not is_version(version):
            raise CorruptFile(self._bad_current_message(name, version))
        return version

    def _bad_current_message(self, name: str, found: str) -> str:
        return (
            f"{self._store.location}/{name}/current: expected the name of a stored version, found "
            f"{found[:40]!r}; choose one with `foreword bank rollback {name} --version VERSION`."
        )

    def _resolve(self, ref: str) -> tuple[str, str]:
        name, wanted = split_ref(ref)
        raw = self._read_current(name)
        return name, self._parse_current(name, raw) if wanted is None else self._find_version(name, wanted)

    def _find_version(self, name: str, wanted: str) -> str:
        known = self._sorted_versions(name)
        found = matching_versions(wanted, known)
        if len(found) > 1:
            raise UnknownTask(f"{name}@{wanted} may be {' or '.join(found)}; give the full version.")
        if not found:
            raise UnknownTask(
                f"no version {wanted!r} of {name!r}: {suggest(wanted, known, f'foreword bank show {name}')}"
            )
        return found[0]

    def _sorted_versions(self, name: str) -> list[str]:
        return sorted(self._store.versions(name), key=lambda version: (version_number(version), version))

    def _previous_version(self, name: str, raw: bytes) -> str:
        current = self._parse_current(name, raw)
        older = [v for v in self._sorted_versions(name) if version_number(v) < version_number(current)]
        if not older:
            raise UnknownTask(f"{name!r} has no version before {current}; publish another one.")
        return older[-1]

    def _check_model(self, task: Task) -> None:
        """Raise `PublishConflict` if the current version is of another model and its record can be read."""
        try:
            raw = self._store.read_current(task.name)
            if raw is None:
                return
            record = self._store.record(task.name, self._parse_current(task.name, raw))
        except CorruptFile:
            return
        served, model = ModelIdentity.from_json(record["model"]), task.prefix.model
        if not _related(served, model):
            raise PublishConflict(
                f"the task {task.name!r} serves {served.architecture} with {served.weights[:12]}, found "
                f"{model.architecture} with {model.weights[:12]}; choose another name, or pass --replace."
            )

    def _commit(self, name: str, version: str, folder: Path) -> None:
        """Make the version written in ``folder`` the current one, or remove it again."""
        try:
            self._store.commit(name, version, folder)
            self._check_race(name, version)
            self._serve(name, version)
        except (OSError, KeyboardInterrupt) as error:
            if self._store.read_current(name) == f"{version}\n".encode():
                if isinstance(error, KeyboardInterrupt):
                    raise
                raise BankError(
                    f"{name}@{version} is served now, but {self._store.location} did not confirm it "
                    f"({error.strerror}); check the disk, then publish again."
                ) from error
            with suppress(OSError):
                self._store.remove_version(name, version)
            raise

    def _serve(self, name: str, version: str) -> None:
        """Serve one version to all requests. Its name ends a split of another one, the removal one of its own."""
        split = self._store.read_file(name, SPLIT)
        if split is not None and version.encode() in split:  # else it would come into force with its version
            self._store.remove_file(name, SPLIT)
            split = None
        self._store.write_current(name, version)
        if split is not None:
            self._store.remove_file(name, SPLIT)
        self._splits.pop(name, None)

    def _read_split(self, name: str) -> bytes | None:
        """The bytes of a split; those of an object store may be `SPLIT_SECONDS` old, since a request waits for them."""
        read_at, data = self._splits.get(name, (-SPLIT_SECONDS, None))
        if isinstance(self._store, LocalStore) or time.monotonic() - read_at >= SPLIT_SECONDS:
            data = self._store.read_file(name, SPLIT)
            self._splits[name] = time.monotonic(), data
        return data

    def _parse_split(self, name: str, raw: bytes) -> Split | None:
        data = self._read_split(name)
        if data is None:
            return None
        try:
            split = Split.parse(data, f"{self._store.location}/{name}/{SPLIT}")
        except CorruptFile as error:
            raise CorruptFile(
                f"{str(error).rpartition('; ')[0]}; end it with `foreword bank split {name} --off`."
            ) from error
        return split if split.current == self._parse_current(name, raw) else None

    def _prune_task(self, name: str) -> None:
        with self._exclusive(name, _NOT_REMOVED):
            if not self._has_expired(name):
                raise UnknownTask(f"{name!r} was published or used meanwhile.")
            self._store.remove_task(name)

    def _has_expired(self, name: str) -> bool:
        """Whether every version of a task has."""
        served = f"{name}@{self.current(name)}"
        if served in self._without_ttl:  # versions never change, and most tasks live for ever
            return False
        if self._lifetimes.expires(self._store.record(*self._resolve(served))) is None:
            self._without_ttl.add(served)
            return False
        records = [self._store.record(name, version) for version in self._sorted_versions(name)]
        return bool(records) and all(map(self._lifetimes.has_expired, records))

    def _check_race(self, name: str, version: str) -> None:
        """Raise `PublishConflict` if another writer has published a later number, which object stores allow."""
        served = (self._store.read_current(name) or b"").decode(errors="replace").strip()
        if is_version(served) and version_number(served) > version_number(version):
            raise PublishConflict(
                f"{name}@{version} was stored but is not served: another writer published {served} "
                f"meanwhile; `foreword bank rollback {name} --version {version}` serves it."
            )

    def _verify_task(self, name: str) -> list[str]:
        problems, versions, current = [], self._sorted_versions(name), None
        try:
            current = self._parse_current(name, self._read_current(name))
            if current not in versions:
                problems.append(self._bad_current_message(name, current))
        except CorruptFile as error:
            problems.append(str(error))
        for version in versions if current is None or current in versions else [*versions, current]:
            try:
                problems += check_version(self._store.folder(name, version, fresh=True), name, version)
            except CorruptFile as error:
                problems.append(str(error))
        return problems


def check_free(name: str, reserved: Collection[str]) -> None:
    """Raise UsageError for a bad name, PublishConflict for the name of the base model."""
    check_name(name)
    if name in {other.lower() for other in reserved}:
        raise PublishConflict(f"the name {name!r} belongs to the base model; choose another name.")


def _open_store(root: str, cache: Path, clock: Callable[[], float]) -> Store:
    # A file URL names a folder of this machine: it is the same bank as its path, with the same guarantees.
    protocol, separator, path = root.partition("://")
    if not separator or protocol in ("file", "local"):
        return LocalStore(Path(path or root).expanduser())
    return RemoteStore(root, cache.expanduser(), clock)


def _related(one: ModelIdentity, other: ModelIdentity) -> bool:
    same_weights = {one.weights, *one.lineage} & {other.weights, *other.lineage}
    return one.architecture == other.architecture and bool(same_weights)
