"""`read_utf8`: the text of a file as people save it, or a sentence that says how to save it."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

from foreword.errors import DataError

MAX_RATIO, MIN_UNPACKED = 100, 64 << 20
"""Bytes of a packed file for each of its own, and what may always be: rows pack to a tenth, zeros to a thousandth."""
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_utf8(file: Path) -> str:
    """The text of a file, without a byte order mark; a file that ends in ``.gz`` is unpacked.

    Raises DataError that says what is wrong.
    """
    try:
        data = file.read_bytes()
        if file.suffix.lower() == ".gz":
            data = _unpacked(file, data)
    except ValueError as error:  # a NUL in the path
        raise DataError(f"{str(file)!r} cannot be read: {error}; check the path.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file} is not a whole gzip file ({error}); pack it anew.") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; check the path.") from error
    # Without a mark, every other byte of Latin text is 0.
    if data.startswith(_UTF16_MARKS) or 0 in data[:2]:
        raise DataError(f"{file} is UTF-16 text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8 {file.name}).")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{file} line {line} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error


def _unpacked(file: Path, data: bytes) -> bytes:
    """The content of a gzip file. Raises DataError for one that is made to fill the memory."""
    most = max(MIN_UNPACKED, MAX_RATIO * len(data))
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
        unpacked = packed.read(most + 1)
    if len(unpacked) > most:
        raise DataError(f"{file} unpacks to more than {MAX_RATIO} times its size; unpack it if that is meant.")
    return unpacked


def is_folder(path: Path) -> bool:
    """Whether there is a folder of this name; a name that no file can have is none."""
    try:
        return path.is_dir()
    except OSError:  # longer than names are
        return False


def stem_suffix(file: Path) -> str:
    """The suffix in lower case that says what a file holds: ``.csv`` of ``train.CSV.gz``."""
    name = file.with_suffix("") if file.suffix.lower() == ".gz" else file
    return name.suffix.lower()
