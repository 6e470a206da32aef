"""`ChatRepl`: the read-eval-print loop of ``foreword chat``; a line is a command or a question."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.cli.chat.line_reader import LineReader
from foreword.cli.chat.session import ChatSession
from foreword.cli.chat.word_wrap import WordWrap
from foreword.cli.generation_stats import GenerationStats, GenerationTimer
from foreword.cli.options import say
from foreword.errors import EngineError, ForewordError, PromptTooLong, UsageError

if TYPE_CHECKING:
    from foreword.bank.bank import Bank
    from foreword.engine.protocol import Stream

HELP = """\
/task NAME  let a task answer, from a new beginning; without NAME, list the tasks
/base       let the base model answer, from a new beginning
/clear      begin a new conversation
/stats      time to first token, tokens a second and cached tokens: last answer, whole session
/help       this
/quit       leave, as Ctrl-D does
Ctrl-C stops an answer. A line that begins with a space is always a question."""


class ChatRepl:
    """Reads lines, and prints answers and the output of commands on stdout, all else on stderr.

    Args:
        session: what questions are asked in.
        bank: tasks for ``/task``.
        history: file of earlier lines.
    """

    def __init__(self, session: ChatSession, bank: Bank, history: Path) -> None:
        self._session, self._bank = session, bank
        self._reader = LineReader(history, self._complete)
        self._stats: list[GenerationStats] = []  # of every answer
        self._commands: dict[str, Callable[[str], None]] = {
            "/task": self._task_command,
            "/base": lambda rest: self._select_task(None),
            "/clear": self._clear_command,
            "/stats": self._stats_command,
            "/help": lambda rest: print(HELP, flush=True),
        }

    def run(self) -> None:
        """Run until /quit, Ctrl-D or the end of the input. Raises EngineError if the engine has stopped."""
        if self._reader.interactive:
            say(f"{self._session.answers.engine.name}; /help lists the commands, Ctrl-D leaves")
        while (line := self._reader.read(self._task_name)) is not None:
            if line.strip() == "/quit":
                return
            try:
                self._handle(line)
            except ForewordError as error:
                if not self._session.answers.engine.alive:
                    raise
                say(f"foreword: {error}")
            except KeyboardInterrupt:  # just before or after an answer
                if not self._reader.interactive:
                    raise

    @property
    def _task_name(self) -> str:
        return self._session.task.name if self._session.task is not None else "base"

    def _handle(self, line: str) -> None:
        if not line.strip():
            return
        if not line.startswith("/"):
            return self._answer(line.strip())
        word, _, rest = line.partition(" ")
        if word not in self._commands:
            near = get_close_matches(word, [*self._commands, "/quit"], n=1)
            mend = f"did you mean {near[0]}?" if near else "/help lists the commands."
            raise UsageError(f"there is no command {word}; {mend}")
        self._commands[word](rest.strip())

    def _answer(self, question: str) -> None:
        timer = GenerationTimer()
        try:
            stream = self._session.ask(question)
        except PromptTooLong as error:
            mend = " /clear begins a new conversation." if self._session.messages else ""
            raise PromptTooLong(f"{error}{mend}") from None
        pieces: list[str] = []
        reason, failed = None, None
        wrap = WordWrap() if sys.stdout.isatty() else None
        with cancel_on_sigint(stream):
            for chunk in stream:
                timer.add(chunk)
                pieces.append(chunk.text)
                print(wrap.add(chunk.text) if wrap is not None else chunk.text, end="", flush=True)
                reason, failed = chunk.finish_reason, chunk.error
        print(wrap.end() if wrap is not None else "", flush=True)
        if failed is not None:
            raise EngineError(failed)
        if reason == "cancelled":
            say("(stopped)")
        if (stats := timer.stats(stream)) is not None:
            self._stats.append(stats)
            self._session.add_turn(question, "".join(pieces))

    def _task_command(self, name: str) -> None:
        if not name:
            names = self._bank.names()
            print("\n".join(names) if names else "the bank is empty", flush=True)
            return
        self._select_task(name)

    def _select_task(self, name: str | None) -> None:
        self._session.select_task(name)
        task = self._session.task
        answerer = task.ref if task is not None else self._session.answers.engine.name
        say(f"({answerer} answers{', every question by itself' if self._session.single_turn else ''})")

    def _clear_command(self, rest: str) -> None:
        self._session.clear()
        say("(a new conversation)")

    def _stats_command(self, rest: str) -> None:
        if not self._stats:
            raise UsageError("nothing was answered yet; ask something first.")
        print(f"last answer: {self._stats[-1]}", flush=True)
        count = len(self._stats)
        answers = f"{count} answer{'s' if count > 1 else ''}"
        print(f"session:     {GenerationStats.total(self._stats)} in {answers}", flush=True)

    def _complete(self, line: str) -> list[str]:
        if line.startswith("/task "):
            return [name for name in self._bank.names() if name.startswith(line.removeprefix("/task "))]
        return [word for word in (*self._commands, "/quit") if line.startswith("/") and word.startswith(line)]


@contextmanager
def cancel_on_sigint(stream: Stream) -> Iterator[None]:
    """In this block Ctrl-C cancels the answer instead of raising KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, lambda number, frame: stream.cancel())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
