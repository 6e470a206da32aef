"""`Loop`: the thread that steps an engine while there is work."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable


class Loop:
    """Runs ``step`` in one thread until it returns False, and again whenever it is woken.

    Args:
        step: does one step of work and says whether there may be more.
        on_crash: called if ``step`` raises, which ends the thread.
    """

    def __init__(self, step: Callable[[], bool], on_crash: Callable[[Exception], None]) -> None:
        self._step = step
        self._on_crash = on_crash
        self._work = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="foreword-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()
        # A daemon thread that is still inside torch when the interpreter goes down would abort the process.
        atexit.register(self.stop)

    def wake(self) -> None:
        self._work.set()

    def stop(self) -> None:
        """Let the step in progress end, and the thread with it."""
        self._stopping = True
        self._work.set()
        if self._thread.is_alive():
            self._thread.join()
        atexit.unregister(self.stop)

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._work.wait()
                self._work.clear()
                while not self._stopping and self._step():
                    pass
        except Exception as error:  # whoever waits for an answer must hear of it
            self._on_crash(error)
            raise
