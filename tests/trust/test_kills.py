"""Commands killed at their system calls: what was served is served, and the same command finishes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
GROUPS = {"bank": (3, 1000), "store": (2, 1000), "learning": (0, 60), "files": (3, 1000)}
"""Kills of each command at most, short and long; evenly over its calls. Each kill of a learning one trains twice."""

KILLS: dict[str, int] = {}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``kill_at.c``, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("kills at system calls need Linux and a C compiler")
    library = tmp_path_factory.mktemp("library") / "kill_at.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "kill_at.c", "-ldl"], check=True)
    return library


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_is_lost(library: Path, tmp_path: Path, scale, group: str) -> None:
    if not (kills := scale(*GROUPS[group])):
        pytest.skip("in the long form alone")
    settings = {"LD_PRELOAD": library, "OMP_NUM_THREADS": 1, "HF_HUB_OFFLINE": 1, "PYTHONDONTWRITEBYTECODE": 1}
    paths = [HERE.parents[1] / "src", HERE.parents[1], HERE.parent]
    environment = {**os.environ, **{name: str(value) for name, value in settings.items()}}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    command = [sys.executable, "-m", "trust.killed_commands", group, tmp_path, "--kills", str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    tried: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    KILLS[group] = sum(each["kills"] for each in tried)
    lost = [f"{each['command']}, {problem}" for each in tried for problem in each["lost"]]
    print(f"{group}: {KILLS[group]} kills in {len(tried)} commands, {len(lost)} lost")
    assert not lost, "\n".join(lost)


def test_kills_in_all(scale) -> None:
    if len(KILLS) < sum(scale(*amounts) > 0 for amounts in GROUPS.values()):
        pytest.skip("a group did not run in this process")
    print(f"{sum(KILLS.values())} kills in all, 0 lost")
    assert sum(KILLS.values()) >= scale(60, 1000)
