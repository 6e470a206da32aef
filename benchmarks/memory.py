"""Memory of this process: what it holds, and the most that it has held."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_REFERENCES = Path("/proc/self/clear_refs")


class PeakMemory:
    """A handler of a participant, made when it is ready: memory while it was made, and from then on."""

    def __init__(self) -> None:
        self._making, self._loaded = _peak(), _held()
        try:
            _REFERENCES.write_text("5")  # lets the peak begin anew
        except OSError:
            self._loaded = None

    def __call__(self) -> dict[str, int | None]:
        """``peak_bytes`` of the whole process, and ``growth_bytes`` over what it held when it was ready, which only
        some systems can tell."""
        peak = _peak()
        growth = peak - self._loaded if self._loaded is not None else None
        return {"peak_bytes": max(peak, self._making), "growth_bytes": growth}


def _held() -> int | None:
    """Resident bytes, without what was freed and only waits to be used again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library alone
    if trim is not None:
        trim(0)
    return _status("VmRSS")


def _peak() -> int:
    most = _status("VmHWM")
    if most is not None:
        return most
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int | None:
    """A line such as ``VmRSS:  1234 kB`` in bytes."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines() if _STATUS.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
