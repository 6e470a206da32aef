"""The preflight check: a child process runs a prompt on a model before this process loads it with llama.cpp.

A library that was compiled for another CPU, or miscompiled for this one, ends its process with a signal at the first
batch whose products use wide instructions, so no error could be raised. The child therefore runs such a batch first,
with the same library, file and parameters. Run as a module, this file is that child.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foreword import errors
from foreword.errors import EngineError, ForewordError
from foreword.home import home
from foreword.llamacpp.compat import PACKAGE, SUPPORTED_VERSIONS, Session, check_version, library_files
from foreword.version import __version__

if TYPE_CHECKING:
    from foreword.llamacpp.model import GgufModel

TOKENS = 64
"""Length of the prompt: AMX is used from 33 tokens on, tiles of flash attention from 64."""

TIMEOUT = 600.0
"""Seconds that the child may take; loading a file of 100 MB and running the prompt takes about one."""

_REPORTED_ERROR = 3  # exit status of a child that wrote the error's class and message to stdout
_FIXES = {
    "SIGILL": "it was compiled for another CPU, or wrongly for this one: compile it on this machine, with "
    f"pip install --force-reinstall --no-cache-dir --no-deps {PACKAGE}=={'.'.join(map(str, SUPPORTED_VERSIONS[0]))}",
    "SIGKILL": "the system may have run out of memory: free some, or take a smaller file",
}
_DEFAULT_FIX = f"compile {PACKAGE} on this machine again, or take another file"
_CPUINFO_FIELDS = ("model name", "flags", "Features", "CPU part")


def preflight(model: GgufModel, *, remember: bool = True, timeout: float = TIMEOUT) -> None:
    """Run a prompt of `TOKENS` tokens in a child process.

    Success is remembered in Foreword's home for this library, CPU and file; the next load then starts no child.

    Args:
        model: the file, and the dtype of its cache.
        remember: skip the run if success is remembered, and remember it; else run in any case.
        timeout: seconds that the child may take.

    Raises:
        UsageError: llama.cpp is not installed, or not in a supported version.
        UnsupportedModel: raised by the child for the file.
        EngineError: the child was killed by a signal, which is named, or it hung or failed.
    """
    check_version()
    facts = _facts(model)
    remember = remember and bool(facts["library"])  # a library that is not found could change unnoticed
    marker = home() / "llamacpp" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    if remember and marker.is_file():
        return
    _run(model, timeout)
    if remember:
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_text(json.dumps(facts), encoding="utf-8")
        except OSError:  # a home that cannot be written: the next load runs it again
            pass


def _facts(model: GgufModel) -> dict[str, Any]:
    """Everything that the result depends on."""
    return {
        "foreword": __version__,
        "library": [[str(file), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in library_files()],
        "cpu": _cpu(),
        "file": model.identity.weights,
        "dtype": model.dtype.name,
        "tokens": TOKENS,
    }


def _cpu() -> list[str]:
    """Model and instruction sets of this machine's CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [platform.machine(), platform.processor()]
    return sorted({line for line in lines if line.split(":")[0].strip() in _CPUINFO_FIELDS})


def _run(model: GgufModel, timeout: float) -> None:
    # -P: nothing is imported from the current folder.
    command = [sys.executable, "-P", "-m", "foreword.llamacpp.preflight", str(model.file), model.dtype.name]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # else an abort starts a debugger
    trial = f"{TOKENS} tokens of {model.file.name} in a child process"
    try:
        # stderr is inherited: it shows what llama.cpp prints.
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise EngineError(
            f"llama.cpp did not run {trial} within {timeout:g} seconds; take a smaller file, or use --engine embedded."
        ) from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        fix = _FIXES.get(name, _DEFAULT_FIX)
        raise EngineError(f"llama.cpp was killed by {name} while running {trial}; {fix}, or use --engine embedded.")
    if done.returncode == _REPORTED_ERROR:
        error, message = json.loads(done.stdout)
        raise getattr(errors, error)(message)
    if done.returncode:
        raise EngineError(
            f"llama.cpp ended with status {done.returncode} while running {trial}; what it printed says why."
        )


def _run_prompt(file: str, dtype: str) -> None:
    session = Session(Path(file), dtype=np.dtype(dtype), num_cells=TOKENS, batch_size=TOKENS, max_outputs=1)
    batch = session.tokens
    batch.token_ids[:] = np.arange(TOKENS) % session.vocab_size
    batch.positions[:], batch.seq_ids[:], batch.count = np.arange(TOKENS), 0, TOKENS
    batch.outputs[-1] = 1
    session.decode(batch)
    session.logits(TOKENS - 1)
    session.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the parent, too, which reports it
    try:
        _run_prompt(*sys.argv[1:])
    except ForewordError as error:
        print(json.dumps([type(error).__name__, str(error)]))
        sys.exit(_REPORTED_ERROR)
