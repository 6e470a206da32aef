"""`StopAfterStep`: Ctrl-C lets the step end and writes a checkpoint, so that a resumed run goes on exactly there."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from transformers import TrainerCallback


class StopAfterStep(TrainerCallback):
    """Between enter and exit, the first Ctrl-C stops the Trainer behind the present step; a second one, at once.

    Exit raises KeyboardInterrupt for the first. In another thread than the main one, signals are left alone.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None

    def __enter__(self) -> StopAfterStep:
        handler = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(handler):
            self._previous = handler
            signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._restore()
        if self._asked and kind is None:
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._asked:
            control.should_save = control.should_training_stop = True

    def _stop(self, *_: object) -> None:
        self._asked = True
        self._restore()
        print("stopping behind this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
