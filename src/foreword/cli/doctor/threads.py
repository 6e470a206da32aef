"""Checks of the number of PyTorch's threads against the usable cores, and of OMP_WAIT_POLICY."""

from __future__ import annotations

import os
from pathlib import Path

from foreword.cli.doctor.finding import Finding


def check_threads() -> list[Finding]:
    """Check the threads. Imports PyTorch."""
    import torch

    return [
        _check_count(torch.get_num_threads(), cores()),
        *_check_wait_policy(os.environ.get("OMP_WAIT_POLICY", "").lower()),
    ]


def cores() -> int:
    """Cores that this process may use: its CPU affinity, bounded by its cgroup quota rounded up."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(Path("/sys/fs/cgroup/cpu.max"))
    return usable if quota is None else max(1, min(usable, -int(-quota // 1)))


def _cgroup_quota(file: Path) -> float | None:
    """Cores of a cgroup v2 quota, ``QUOTA PERIOD`` in microseconds or ``max PERIOD``; ``None`` without a quota."""
    try:
        quota, period = file.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _check_count(threads: int, usable: int) -> Finding:
    found = f"{threads} of PyTorch on {usable} cores"
    if threads > usable:
        return Finding("installation", "threads", "note", found, f"set OMP_NUM_THREADS={usable}")
    if threads < usable and "OMP_NUM_THREADS" in os.environ:
        mend = "raise OMP_NUM_THREADS unless other processes need the other cores"
        return Finding("installation", "threads", "note", found, mend)
    return Finding("installation", "threads", "good", found)


def _check_wait_policy(policy: str) -> list[Finding]:
    if policy == "active":
        mend = "unset OMP_WAIT_POLICY: idle threads keep their cores busy"
        return [Finding("installation", "OMP_WAIT_POLICY", "note", policy, mend)]
    if policy == "passive":
        mend = "right where other processes keep the cores busy; unset it where they are free, and steps are shorter"
        return [Finding("installation", "OMP_WAIT_POLICY", "note", policy, mend)]
    return []
