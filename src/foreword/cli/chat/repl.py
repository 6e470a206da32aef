"""`ChatRepl`: line by line, a command or a question, until somebody leaves."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.cli.chat.conversation import Conversation
from foreword.cli.chat.line_reader import LineReader
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
    """Holds a conversation with whoever is at the keyboard.

    Answers, and what commands were asked to show, go to stdout; all else goes to stderr.

    Args:
        conversation: the conversation.
        bank: whose tasks can be turned to.
        history: file of earlier lines.
    """

    def __init__(self, conversation: Conversation, bank: Bank, history: Path) -> None:
        self._conversation, self._bank = conversation, bank
        self._reader = LineReader(history, self._complete)
        self._answer_stats: list[GenerationStats] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/task": self._task,
            "/base": lambda rest: self._select_task(None),
            "/clear": self._clear,
            "/stats": self._stats,
            "/help": lambda rest: print(HELP, flush=True),
        }

    def run(self) -> None:
        """Until /quit, Ctrl-D or the end of the pipe. Raises EngineError once the engine can answer no more."""
        if self._reader.interactive:
            say(f"{self._conversation.engine.name}; /help lists the commands, Ctrl-D leaves")
        while (line := self._reader.read(self._name)) is not None:
            if line.strip() == "/quit":
                return
            try:
                self._handle(line)
            except ForewordError as error:
                if not self._conversation.engine.alive:
                    raise
                say(f"foreword: {error}")
            except KeyboardInterrupt:  # in the moments before and after an answer
                if not self._reader.interactive:
                    raise

    @property
    def _name(self) -> str:
        return self._conversation.task.name if self._conversation.task is not None else "base"

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
            stream = self._conversation.ask(question)
        except PromptTooLong as error:
            behind = " /clear begins a new conversation." if self._conversation.messages else ""
            raise PromptTooLong(f"{error}{behind}") from None
        pieces: list[str] = []
        reason, failed = None, None
        with cancel_on_sigint(stream):
            for chunk in stream:
                timer.take(chunk)
                pieces.append(chunk.text)
                print(chunk.text, end="", flush=True)
                reason, failed = chunk.finish_reason, chunk.error
        print(flush=True)
        if failed is not None:
            raise EngineError(failed)
        if reason == "cancelled":
            say("(stopped)")
        if (stats := timer.stats(stream)) is not None:
            self._answer_stats.append(stats)
            self._conversation.add_turn(question, "".join(pieces))

    def _task(self, name: str) -> None:
        if not name:
            names = self._bank.names()
            print("\n".join(names) if names else "the bank is empty", flush=True)
            return
        self._select_task(name)

    def _select_task(self, name: str | None) -> None:
        self._conversation.select_task(name)
        task = self._conversation.task
        said = f"{task.ref} answers" if task is not None else f"{self._conversation.engine.name} answers"
        say(f"({said}, every question by itself)" if self._conversation.single_turn else f"({said})")

    def _clear(self, rest: str) -> None:
        self._conversation.clear()
        say("(a new conversation)")

    def _stats(self, rest: str) -> None:
        if not self._answer_stats:
            raise UsageError("nothing was answered yet; ask something first.")
        print(f"last answer: {self._answer_stats[-1]}", flush=True)
        print(
            f"session:     {GenerationStats.together(self._answer_stats)} in {len(self._answer_stats)} answers",
            flush=True,
        )

    def _complete(self, line: str) -> list[str]:
        if line.startswith("/task "):
            return [name for name in self._bank.names() if name.startswith(line.removeprefix("/task "))]
        return [word for word in (*self._commands, "/quit") if line.startswith("/") and word.startswith(line)]


@contextmanager
def cancel_on_sigint(stream: Stream) -> Iterator[None]:
    """While an answer comes, Ctrl-C ends it and nothing else."""
    before = signal.signal(signal.SIGINT, lambda number, frame: stream.cancel())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
