"""A participant in a process of its own, so that its memory and its caches are its own: both ends of the pipe.

``python -m foreword.bench.worker MODULE:FUNCTION`` is the process. Its first line on stdin are the settings, as JSON;
the function turns them into named handlers; every further line calls one of them and is answered by a line on stdout.
Imports nothing but the standard library, so that a peer's Python needs no more than the peer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foreword.errors import BenchError

Json = Mapping[str, Any]
Handlers = Mapping[str, Callable[..., Any]]
"""What a participant can be asked; handlers take and return JSON values."""
# vLLM takes five to end its own processes.
SECONDS_TO_END = 30


class Worker:
    """A process that answers questions; leaving the block ends it and all that it started.

    Its handlers are made there by ``factory``, a ``module:function``, from ``settings`` of JSON values. Variables that
    are set already win over its ``environment``. Raises BenchError if it cannot be started, or the function fails.
    """

    def __init__(
        self, name: str, factory: str, settings: Json, python: str = sys.executable, environment: Json | None = None
    ) -> None:
        self.name, self._killed = name, False
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
        variables = _environment(factory, environment or {})
        try:  # in a session of its own: an engine may have processes, which end with it
            command = [python, "-m", __name__, factory]
            self._process = subprocess.Popen(command, env=variables, start_new_session=True, **pipes)
        except OSError as error:
            raise BenchError(f"{name} cannot be started: {python}: {error.strerror}; give another Python.") from error
        self._stdin: Any = self._process.stdin
        self._stdout: Any = self._process.stdout
        try:
            self._call(settings)
        except BaseException:
            self.__exit__(BaseException)
            raise

    def ask(self, what: str, **arguments: Any) -> Any:
        """Call a handler. Raises BenchError if it fails or the process ends."""
        return self._call({"ask": what, "with": arguments})

    def kill(self) -> None:
        """End the process and those that it started; once, since its number may be another's later."""
        if not self._killed:
            self._killed = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.kill()  # it may be in the middle of a long answer
        for pipe in (self._stdin, self._stdout):
            with suppress(OSError):  # what was never sent to a dead process
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_END)
        self.kill()
        self._process.wait()

    def _call(self, data: Mapping[str, Any]) -> Any:
        with suppress(OSError):  # it died; that it does not answer says so
            print(json.dumps(data), file=self._stdin, flush=True)
        line = self._stdout.readline()
        reply = json.loads(line) if line else {"error": f"it ended without an answer, status {self._process.wait()}"}
        if not line:
            self.kill()  # what it started
        if "error" in reply:
            raise BenchError(f"{self.name} failed: {reply['error']}")
        return reply["answer"]


def _environment(factory: str, wanted: Mapping[str, str]) -> dict[str, str]:
    """Our variables, and what is wanted besides, with the code of the factory on the path of any Python."""
    specs = [find_spec(module.partition(".")[0]) for module in (__name__, factory.partition(":")[0])]
    files = [(Path(spec.origin), bool(spec.submodule_search_locations)) for spec in specs if spec and spec.origin]
    roots = dict.fromkeys(str(file.parents[is_package]) for file, is_package in files)
    paths = [*roots, *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    settled = {**quiet, "TOKENIZERS_PARALLELISM": "false", **wanted}
    return {**settled, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def main() -> None:
    """The process itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent process, which ends this one
    # The real stdout for replies alone; whatever libraries print goes to stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        module, _, function = sys.argv[1].partition(":")
        handlers: Handlers = getattr(import_module(module), function)(json.loads(sys.stdin.readline()))
        print('{"answer": null}', file=replies, flush=True)
        for line in sys.stdin:
            question = json.loads(line)
            print(json.dumps({"answer": handlers[question["ask"]](**question["with"])}), file=replies, flush=True)
    except Exception as error:  # whatever a peer raises is the answer
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(frame.filename)} line {frame.lineno}"
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:500]} ({where})"
        print(json.dumps({"error": said}), file=replies, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
