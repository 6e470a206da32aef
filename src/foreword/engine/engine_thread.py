"""`EngineThread`: the thread that steps an engine while there is work."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable


class EngineThread:
    """Calls ``step`` in one thread until it returns False, and again after every `wake`.

    Args:
        step: does one step and returns whether there may be more to do.
        on_crash: called if ``step`` raises, which ends the thread.
    """

    def __init__(self, step: Callable[[], bool], on_crash: Callable[[Exception], None]) -> None:
        self._step = step
        self._on_crash = on_crash
        self._has_work = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="foreword-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()
        # A daemon thread that is still inside torch when the interpreter goes down would abort the process.
        atexit.register(self.stop)

    def wake(self) -> None:
        self._has_work.set()

    def stop(self) -> None:
        """Let the step in progress end, and the thread with it."""
        self._stopping = True
        self._has_work.set()
        if self._thread.is_alive():
            self._thread.join()
        atexit.unregister(self.stop)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._has_work.wait()
                self._has_work.clear()
                while not self._stopping and self._step():
                    pass
        except Exception as error:  # every open stream must be told
            self._on_crash(error)
            raise
