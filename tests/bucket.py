"""`Bucket`: an object store for tests, as an fsspec file system of the protocol ``bucket``."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class Bucket(LocalFileSystem):
    """An object store in a folder: objects appear whole, ``mode="create"`` is exclusive, calls are noted."""

    protocol = "bucket"
    calls: tuple[str, ...] = ()
    fail: Callable[[str, str], None] = staticmethod(lambda verb, path: None)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return super()._strip_protocol(str(path).removeprefix("bucket://"))

    def note(self, verb: str, path: str) -> None:
        Bucket.calls = (*Bucket.calls, f"{verb} {path.rpartition('/')[2]}")
        Bucket.fail(verb, path)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        self.note("get", path)
        return super().cat_file(path, *args, **kwargs)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.note("put", path)
        target = Path(self._strip_protocol(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        whole = target.with_name(f".{uuid.uuid4().hex}")
        whole.write_bytes(value)
        if mode == "create":
            target.hardlink_to(whole)
            whole.unlink()
        else:
            whole.rename(target)


fsspec.register_implementation("bucket", Bucket, clobber=True)
