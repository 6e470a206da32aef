"""The preflight check: a child process runs a prompt of a model before this process relies on llama.cpp.

A library that was compiled for another CPU, or by a compiler that gets this one's instructions wrong, ends its process
at the first batch whose products take the wide path, and no sentence can be said from there. So a child takes that
batch first, with the same library, file and parameters. Run as a module, this file is that child.
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
from foreword.llamacpp.compat import KNOWN, PACKAGE, Session, check_version, library_files
from foreword.version import __version__

if TYPE_CHECKING:
    from foreword.llamacpp.model import GgufModel

TOKENS = 64
"""Of the prompt: AMX is taken from 33 tokens on, tiles of flash attention from 64."""

TIMEOUT = 600.0
"""Seconds that the child may take; loading a file of 100 MB and running the prompt takes about one."""

_SAID = 3  # status of a child that says on stdout what is wrong: the error's name and sentence
_MENDS = {
    "SIGILL": "it was compiled for another CPU, or wrongly for this one: compile it on this machine, with "
    f"pip install --force-reinstall --no-cache-dir --no-deps {PACKAGE}=={'.'.join(map(str, KNOWN[0]))}",
    "SIGKILL": "the system may have run out of memory: free some, or take a smaller file",
}
_OTHERWISE = f"compile {PACKAGE} on this machine again, or take another file"
_CPU = ("model name", "flags", "Features", "CPU part")


def preflight(model: GgufModel, *, remember: bool = True, timeout: float = TIMEOUT) -> None:
    """Run a prompt of `TOKENS` tokens in a child process.

    That it went well is remembered in Foreword's home, for this library, CPU and file; the next load starts no child.

    Args:
        model: the file, and the precision of its cache.
        remember: ask for what is remembered, and remember; else run it in any case.
        timeout: seconds that the child may take.

    Raises:
        UsageError: llama.cpp is not installed, or in a version that is not known here.
        UnsupportedModel: what the child says of the file.
        EngineError: the child died, hung or failed; the sentence names its signal.
    """
    check_version()
    facts = _facts(model)
    remember = remember and bool(facts["library"])  # one that is not found might be exchanged unseen
    proof = home() / "llamacpp" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    if remember and proof.is_file():
        return
    _run(model, timeout)
    if remember:
        try:
            proof.parent.mkdir(parents=True, exist_ok=True)
            proof.write_text(json.dumps(facts), encoding="utf-8")
        except OSError:  # a home that cannot be written: the next load runs it again
            pass


def _facts(model: GgufModel) -> dict[str, Any]:
    """Everything that the outcome hangs on."""
    return {
        "foreword": __version__,
        "library": [[str(file), (stat := file.stat()).st_size, stat.st_mtime_ns] for file in library_files()],
        "cpu": _cpu(),
        "file": model.identity.weights,
        "dtype": model.dtype.name,
        "tokens": TOKENS,
    }


def _cpu() -> list[str]:
    """What this machine's CPU is and which instructions it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return [platform.machine(), platform.processor()]
    return sorted({line for line in lines if line.split(":")[0].strip() in _CPU})


def _run(model: GgufModel, timeout: float) -> None:
    # -P: what lies in the current folder is not imported.
    command = [sys.executable, "-P", "-m", "foreword.llamacpp.preflight", str(model.file), model.dtype.name]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # else an abort starts a debugger
    where = f"llama.cpp, on trial in a child process with {TOKENS} tokens of {model.file.name},"
    try:
        # What llama.cpp itself prints is shown as this process's own.
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise EngineError(
            f"{where} was not done after {timeout:g} seconds; take a smaller file, or use --engine embedded."
        ) from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise EngineError(f"{where} died of {name}; {_MENDS.get(name, _OTHERWISE)}, or use --engine embedded.")
    if done.returncode == _SAID:
        kind, sentence = json.loads(done.stdout)
        raise getattr(errors, kind)(sentence)
    if done.returncode:
        raise EngineError(f"{where} ended with status {done.returncode}; what it printed says why.")


def _child(file: str, dtype: str) -> None:
    session = Session(Path(file), dtype=np.dtype(dtype), cells=TOKENS, rows=TOKENS, outputs=1)
    rows = session.tokens
    rows.tokens[:] = np.arange(TOKENS) % session.vocab_size
    rows.positions[:], rows.sequences[:], rows.count = np.arange(TOKENS), 0, TOKENS
    rows.wanted[-1] = 1
    session.decode(rows)
    session.logits(TOKENS - 1)
    session.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the parent, too, which says it
    try:
        _child(*sys.argv[1:])
    except ForewordError as error:
        print(json.dumps([type(error).__name__, str(error)]))
        sys.exit(_SAID)
