"""How many threads PyTorch runs on, and how they wait, against the cores that there are."""

from __future__ import annotations

import os
from pathlib import Path

from foreword.cli.doctor.finding import Finding


def check_threads() -> list[Finding]:
    """Threads, and how they wait if the environment says so. Loads PyTorch."""
    import torch

    return [_count(torch.get_num_threads(), cores()), *_waiting(os.environ.get("OMP_WAIT_POLICY", "").lower())]


def cores() -> int:
    """Those that this process may use: of its CPU set, and of its control group's quota rounded up."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(Path("/sys/fs/cgroup/cpu.max"))
    return usable if quota is None else max(1, min(usable, -int(-quota // 1)))


def _quota(file: Path) -> float | None:
    """Cores of a control group of version 2: ``QUOTA PERIOD`` in microseconds, or ``max PERIOD``."""
    try:
        quota, period = file.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _count(threads: int, usable: int) -> Finding:
    found = f"{threads} of PyTorch on {usable} cores"
    if threads > usable:
        return Finding("installation", "threads", "note", found, f"set OMP_NUM_THREADS={usable}")
    if threads < usable and "OMP_NUM_THREADS" in os.environ:
        mend = "raise OMP_NUM_THREADS unless other processes need the other cores"
        return Finding("installation", "threads", "note", found, mend)
    return Finding("installation", "threads", "good", found)


def _waiting(policy: str) -> list[Finding]:
    if policy == "active":
        mend = "unset OMP_WAIT_POLICY: idle threads keep their cores busy"
        return [Finding("installation", "OMP_WAIT_POLICY", "note", policy, mend)]
    if policy == "passive":
        mend = "right where other processes keep the cores busy; unset it where they are free, and steps are shorter"
        return [Finding("installation", "OMP_WAIT_POLICY", "note", policy, mend)]
    return []
