"""`GrammarTrial`: builds a grammar in a child process first, whose processor time and memory the system bounds.

llguidance has fuel for its lexer, but none for what it does before: forty patterns in an ``allOf`` take 45 s and 8 GB.
No thread can be stopped in there, a process can. The child imports llguidance alone, and starts in 60 ms.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import threading
from typing import IO

CPU_SECONDS = 1
"""Of one grammar; the system counts whole seconds, so it may become twice that."""
MEMORY_BYTES = 1 << 30
TOO_LARGE = "it grows too large"

_LENGTH = struct.Struct("<Q")


class GrammarTrial:
    """One child process, started with the first grammar and again after one that ended it; any thread may ask.

    It ends with this process, whose end closes its input.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def error(self, grammar: str) -> str:
        """What is wrong with a grammar of llguidance, a clause; empty if it can be built within the bounds."""
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._child = _start()
            child = self._child
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                _write(child.stdin, grammar)
                answer = _read(child.stdout)
            except OSError:  # it ended while it was written to
                answer = None
            if answer is None:
                self._end()
                return TOO_LARGE
            return answer

    def close(self) -> None:
        with self._lock:
            self._end()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            with contextlib.suppress(OSError):  # what was not written yet
                child.communicate()


def _start() -> subprocess.Popen[bytes]:
    # By its path and without the folder of this file, whose modules have names of their own.
    return subprocess.Popen(
        [sys.executable, "-P", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )


def _write(pipe: IO[bytes], text: str) -> None:
    data = text.encode()
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> str | None:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length)
    return data.decode() if len(data) == length else None


def _serve() -> None:
    """Build grammars as they come, until the input ends."""
    from llguidance import LLMatcher

    with contextlib.suppress(AttributeError):  # Windows has no such word
        os.nice(19)  # whoever asked for it waits, and nobody's answer does
    while (grammar := _read(sys.stdin.buffer)) is not None:
        _bound()
        _write(sys.stdout.buffer, LLMatcher.validate_grammar(grammar, None))


def _bound() -> None:
    """Have the system end this process after `CPU_SECONDS` more, or beyond `MEMORY_BYTES`."""
    try:
        import resource
    except ImportError:  # Windows has neither bound
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS has no bound of the address space
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    _serve()
