"""The fenced blocks of a page, run as they are written, one after another in one empty folder.

A block fenced as ``sh`` is what a reader types, one as ``python`` what a reader runs; transcripts, which show a prompt
and what came, are fenced as ``console`` and not run.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import foreword

SOURCE = Path(foreword.__file__).parents[1]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PORT = "8000"
ELSEWHERE = ("docker", "make", "pip", "torchrun", "vllm")
"""Programs that install something or need another environment; what stands behind them is not run."""

_FOREWORD = """#!/usr/bin/env bash
case " $* " in *" --engine vllm "*|*" --engine llamacpp "*) exit 0;; esac
if [ "$1" != serve ]; then exec "{python}" -m foreword "$@"; fi
old=$(cat {scratch}/server 2> /dev/null || true)
[ -z "$old" ] || kill "$old"
while [ -n "$old" ] && kill -0 "$old" 2> /dev/null; do sleep 0.1; done
"{python}" -m foreword "$@" > {scratch}/served.txt 2>&1 < /dev/null &
echo $! > {scratch}/server
for _ in $(seq 600); do curl -sf http://127.0.0.1:{port}/ready > {scratch}/ready.txt && exit 0; sleep 0.2; done
cat {scratch}/served.txt >&2
exit 1
"""


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, and its text."""

    language: str
    text: str


def blocks(page: Path, until: str = "") -> list[Block]:
    """The blocks of a page that are run; those in front of the heading ``until`` if there is one."""
    text = page.read_text(encoding="utf-8")
    if until:
        assert until in text, f"{page.name} has no heading {until!r}"
        text = text.partition(until)[0]
    return [Block(*found) for found in BLOCK.findall(text)]


def run_page(page: Path, folder: Path, model: str, until: str = "") -> None:
    """Run the blocks of a page. Raises AssertionError with the command's output for the first that fails.

    Args:
        folder: an empty folder; the commands run in it, beside a home of their own.
        model: what ``$FOREWORD_MODEL`` names.
        until: a heading that ends what is run.
    """
    work, scratch = folder / "work", folder / "scratch"
    work.mkdir(parents=True)
    scratch.mkdir()
    port = str(_free_port())
    environment = _environment(folder, scratch, model, port)
    try:
        for block in blocks(page, until):
            text = block.text.replace(f":{PORT}", f":{port}").replace(f"--port {PORT}", f"--port {port}")
            command = (
                ["bash", "-euo", "pipefail", "-c", text] if block.language == "sh" else [sys.executable, "-c", text]
            )
            done = subprocess.run(
                command,
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=1800,
            )
            assert done.returncode == 0, f"{page.name}:\n{block.text}\n{done.stdout[-3000:]}"
    finally:
        server = scratch / "server"
        if server.is_file():
            subprocess.run(["kill", server.read_text().strip()], check=False)


def _environment(folder: Path, scratch: Path, model: str, port: str) -> dict[str, str]:
    programs = folder / "programs"
    programs.mkdir()
    shown = _FOREWORD.format(python=sys.executable, scratch=scratch, port=port)
    _write_program(programs / "foreword", shown)
    for name in ELSEWHERE:
        _write_program(programs / name, "#!/bin/sh\nexit 0\n")
    return {
        **os.environ,
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(SOURCE),
        "FOREWORD_HOME": str(folder / "home"),
        "FOREWORD_MODEL": model,
        "NO_COLOR": "1",
    }


def _write_program(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
