"""`Candidate`: one who is measured, in a fresh process, so that its memory is its own and nobody warms its caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from foreword.errors import BenchError


class Candidate:
    """A process that answers questions, see `foreword.bench.worker`; leaving the block ends it.

    Args:
        name: for errors.
        factory: ``module:function`` that makes it there.
        settings: for the function; JSON values.
        python: whose Python.

    Raises:
        BenchError: it could not be made.
    """

    def __init__(self, name: str, factory: str, settings: Mapping[str, Any], python: str = sys.executable) -> None:
        self.name = name
        try:
            self._process = subprocess.Popen(
                [python, "-m", "foreword.bench.worker", factory],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env=_environment(),
            )
        except OSError as error:
            raise BenchError(f"{name} cannot be started: {python}: {error.strerror}; give another Python.") from error
        try:
            self._send(settings)
            self._answer()
        except BaseException:
            self._process.kill()  # it may be in the middle of loading
            self.close()
            raise

    def ask(self, what: str, **arguments: Any) -> Any:
        """The answer to a question. Raises BenchError if there is none."""
        self._send({"ask": what, "with": arguments})
        return self._answer()

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was never sent to a dead process
                assert pipe is not None
                pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Candidate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()  # it may be in the middle of a long answer
        self.close()

    def _send(self, data: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it died; that it does not answer says so
            self._process.stdin.write(json.dumps(data) + "\n")
            self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        reply = json.loads(line) if line else {"error": f"it ended without an answer, status {self._process.wait()}"}
        if "error" in reply:
            raise BenchError(f"{self.name} failed: {reply['error']}")
        return reply["answer"]


def _environment() -> dict[str, str]:
    """Ours, with this very code on the path of any Python.

    How threads wait is the same for all, as the command line sets it.
    """
    source = str(Path(__file__).parents[2])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    settled = {**quiet, "TOKENIZERS_PARALLELISM": "false"}
    return {**settled, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
