"""What a person sees of a run, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class ProgressLines(TrainerCallback):
    """Progress bar with steps and time left, and a line a log entry."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        columns = (TextColumn("learning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("learning")

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()  # also when a run is interrupted, which the Trainer does not tell

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        shown = {"loss", "learning_rate"} | {name for name in logs or {} if name.startswith("eval_")}
        parts = [f"{name} {value:.4g}" for name, value in (logs or {}).items() if name in shown - {"eval_score"}]
        if parts and state.is_world_process_zero:
            self._console.print(f"step {state.global_step}/{state.max_steps}  " + "  ".join(parts), highlight=False)
