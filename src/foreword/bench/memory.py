"""Memory of this process: what it holds, and the most it has held."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_REFERENCES = Path("/proc/self/clear_refs")


def held() -> int | None:
    """Resident bytes now, without what was freed and only waits to be used again; ``None`` where the system does not
    tell."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library alone
    if trim is not None:
        trim(0)
    return _status("VmRSS")


def peak() -> int:
    """The most resident bytes so far, or since `forget_peak`."""
    most = _status("VmHWM")
    if most is not None:
        return most
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> bool:
    """Let `peak` begin anew; False where the system cannot."""
    try:
        _REFERENCES.write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    """A line such as ``VmRSS:  1234 kB`` in bytes."""
    if not _STATUS.is_file():
        return None
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
