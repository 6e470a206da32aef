"""`LineReader`: lines from a terminal, with editing, history and completion, or from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

# Lines of history that are loaded.
MAX_HISTORY = 1000


class LineReader:
    """Reads lines from stdin.

    Args:
        history: file of earlier lines; only its owner may read it.
        complete: returns completions of the line so far, for the Tab key.
    """

    def __init__(self, history: Path, complete: Callable[[str], list[str]]) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._history = history
        self._readline = _readline() if self.interactive else None
        if self._readline is not None:
            for line in _load_history(history):
                self._readline.add_history(line)
            _bind_completer(self._readline, complete)

    def read(self, name: str) -> str | None:
        """The next line without its newline; ``None`` at the end of the input, and an empty one after Ctrl-C.

        Args:
            name: of the task, which is shown as the prompt on a terminal.
        """
        if not self.interactive:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        try:
            line = input(_prompt(name, readline=self._readline is not None))
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            return ""
        if line.strip():
            self._append_history(line)
        return line

    def _append_history(self, line: str) -> None:
        # Appended line by line, so that no line is lost to a kill or another chat. If the file cannot be written, the
        # chat goes on without history.
        with suppress(OSError):
            self._history.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._history, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with open(handle, "a", encoding="utf-8", errors="replace") as file:
                file.write(f"{line}\n")


def _readline() -> ModuleType | None:
    """The readline module, which `input` uses; ``None`` in builds of Python that have none."""
    try:
        import readline
    except ImportError:
        return None
    return readline


def _load_history(history: Path) -> list[str]:
    """The newest `MAX_HISTORY` lines; a file with more than twice as many is truncated to them."""
    try:
        lines = history.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        if len(lines) > 2 * MAX_HISTORY:
            partial = history.with_name(f".{history.name}")
            partial.touch(0o600)
            partial.write_text("".join(f"{line}\n" for line in lines[-MAX_HISTORY:]), encoding="utf-8")
            partial.replace(history)
    except OSError:
        return []
    return lines[-MAX_HISTORY:]


def _bind_completer(readline: ModuleType, complete: Callable[[str], list[str]]) -> None:
    def completer(word: str, state: int) -> str | None:
        line = readline.get_line_buffer()[: readline.get_endidx()]
        found = complete(line)
        return found[state] if state < len(found) else None

    readline.set_completer_delims(" ")
    readline.set_completer(completer)
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")


def _prompt(name: str, *, readline: bool) -> str:
    """The prompt, bold if the terminal has colours; for readline, escape codes are marked as of no width."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return f"{name}> "
    bold, plain = "\x1b[1m", "\x1b[0m"
    if readline:
        bold, plain = f"\x01{bold}\x02", f"\x01{plain}\x02"
    return f"{bold}{name}>{plain} "
