"""`ProgressLines`: the progress of a run on stderr."""

from __future__ import annotations

import sys
from typing import Any

from transformers import TrainerCallback

from foreword.progress import Progress


class ProgressLines(TrainerCallback):
    """Prints steps with their rate and the time left, and a line for every log entry."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.__exit__()  # also when a run is interrupted, which the Trainer does not tell

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._progress = Progress("learning", state.max_steps, "steps").__enter__()
            self._progress.set_completed(state.global_step, before=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._progress is not None:
            self._progress.set_completed(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        shown = {"loss", "learning_rate"} | {name for name in logs or {} if name.startswith("eval_")}
        parts = [f"{name} {value:.4g}" for name, value in (logs or {}).items() if name in shown - {"eval_score"}]
        if parts and state.is_world_process_zero:
            line = f"step {state.global_step}/{state.max_steps}  " + "  ".join(parts)
            print(line, file=sys.stderr, flush=True)
