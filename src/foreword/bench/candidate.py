"""`Candidate`: one who is measured, in a fresh process, so that its memory is its own and nobody warms its caches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from foreword.errors import BenchError

# vLLM takes five to end its own processes.
SECONDS_TO_END = 30


class Candidate:
    """A process that answers questions, see `foreword.bench.worker`; leaving the block ends it.

    Args:
        name: for errors.
        factory: ``module:function`` that makes it there.
        settings: for the function; JSON values.
        python: whose Python.
        environment: of the process, unless ours says otherwise.

    Raises:
        BenchError: it could not be made.
    """

    def __init__(
        self,
        name: str,
        factory: str,
        settings: Mapping[str, Any],
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        try:
            self._process = subprocess.Popen(
                [python, "-m", "foreword.bench.worker", factory],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env=_environment(environment or {}),
                start_new_session=True,  # an engine may have processes of its own, which end with it
            )
        except OSError as error:
            raise BenchError(f"{name} cannot be started: {python}: {error.strerror}; give another Python.") from error
        try:
            self._send(settings)
            self._answer()
        except BaseException:
            self._kill()  # it may be in the middle of loading
            self.close()
            raise

    def ask(self, what: str, **arguments: Any) -> Any:
        """The answer to a question. Raises BenchError if there is none."""
        self._send({"ask": what, "with": arguments})
        return self._answer()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Questions in the block are answered in time, or the process ends. Raises BenchError if it had to."""
        late = threading.Event()
        timer = threading.Timer(seconds, lambda: (late.set(), self._kill()))
        timer.start()
        try:
            yield
        except BenchError as error:
            if late.is_set():
                raise BenchError(f"{self.name} failed: it did not answer within {seconds:g} seconds") from error
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was never sent to a dead process
                assert pipe is not None
                pipe.close()
        try:
            self._ended(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._kill()
            self._ended()

    def __enter__(self) -> Candidate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is not None:
            self._kill()  # it may be in the middle of a long answer
        self.close()

    def _kill(self) -> None:
        """The process, unless it is known to have ended, and those that it started."""
        if self._process.returncode is None:
            self._sweep()

    def _ended(self, seconds: float | None = None) -> int:
        """Its status; those that it started end with it, if they have not yet. Raises subprocess.TimeoutExpired."""
        first = self._process.returncode is None
        status = self._process.wait(seconds)
        if first:
            self._sweep()
        return status

    def _sweep(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _send(self, data: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it died; that it does not answer says so
            self._process.stdin.write(json.dumps(data) + "\n")
            self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        reply = json.loads(line) if line else {"error": f"it ended without an answer, status {self._ended()}"}
        if "error" in reply:
            raise BenchError(f"{self.name} failed: {reply['error']}")
        return reply["answer"]


def _environment(wanted: Mapping[str, str]) -> dict[str, str]:
    """Ours, and what is wanted besides, with this very code on the path of any Python.

    How threads wait is the same for all, as the command line sets it.
    """
    source = str(Path(__file__).parents[2])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    settled = {**quiet, "TOKENIZERS_PARALLELISM": "false", **wanted}
    return {**settled, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
