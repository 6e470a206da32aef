"""What a figure cannot be read without: the machine, the versions, the commit, the time."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreword.version import __version__


def facts(versions: Mapping[str, str]) -> dict[str, Any]:
    """Facts about this run.

    Args:
        versions: of the packages that the candidates run on.
    """
    return {
        "started": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "versions": {"foreword": __version__, "python": platform.python_version(), **versions},
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Cores that this process may use, memory in bytes, and the model of the CPU."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "system": platform.system(),
        "cpu": _cpu(),
        "cores": len(affinity(0)) if affinity is not None else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of the checkout that this code runs from, with ``+`` if files differ from it; ``None`` outside of one."""
    folder = Path(__file__).parents[1]
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if _git(folder, "status", "--porcelain", "--", ".") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
