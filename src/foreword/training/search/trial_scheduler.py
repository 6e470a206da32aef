"""`TrialScheduler`: the trials of a search in one batch; successive halving stops the losers, and others start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import TrainingError
from foreword.models import LanguageModel
from foreword.progress import Say
from foreword.training.data.training_data import TrainingData
from foreword.training.loop.concurrent import ConcurrentTrainer
from foreword.training.loop.concurrent_run import ConcurrentRun
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.trainer import EVALUATIONS
from foreword.training.recipe import Recipe
from foreword.training.run import Run
from foreword.training.search.batching_stats import BatchingStats
from foreword.training.search.config import SearchConfig, errors_name_search_key
from foreword.training.search.samplers import Sampler, format_params, make_sampler
from foreword.training.search.space import TrialParams
from foreword.training.search.trial import Trial, rank_trials, rungs, trials_to_drop


@dataclass(frozen=True)
class TrialFactory:
    """Makes the run of a trial from its parameters.

    Attributes:
        lm: the frozen model of all trials.
        recipe: settings that all trials have in common.
        config: settings of the search.
        data: examples of all trials.
        transfers: tasks that ``init: task:NAME`` may name.
    """

    lm: LanguageModel
    recipe: Recipe
    config: SearchConfig
    data: TrainingData
    transfers: Mapping[str, Task] = field(default_factory=dict)

    def create_run(self, params: TrialParams, like: Run | None = None) -> Run:
        """The run of a trial.

        Args:
            like: a run with other parameters, whose encoded examples are shared if they are the same tokens.

        Raises:
            UsageError: no run can have these parameters.
        """
        recipe = self.config.trial_recipe(self.recipe, params)
        transfer = self.transfers.get(recipe.parent) if recipe.parent is not None else None
        with errors_name_search_key(params):
            return Run.from_recipe(self.lm, recipe, transfer, self.data, like=like)


class TrialScheduler:
    """Runs trials side by side in one batch, stops the losers, and starts others in their place.

    Asynchronous successive halving, see `trials_to_drop`. Its state is saved after every evaluation, so that a search
    that was killed can be resumed.

    Args:
        factory: makes the runs.
        first: the run of any parameters; others share its encoded examples.
        engine: serves the model.
        folder: the run folder.
        say: gets a line for every trial that ends.

    Attributes:
        trials: all that have started.
        batching_stats: seconds of steps, shared and run by run.
        best_run: that of the best complete trial; ``None`` before any is complete.
    """

    def __init__(self, factory: TrialFactory, first: Run, engine: EngineProtocol, folder: RunDir, say: Say) -> None:
        self.trials: list[Trial] = []
        self.batching_stats = BatchingStats()
        self.best_run: ConcurrentRun | None = None
        self._factory, self._first, self._engine, self._folder, self._say = factory, first, engine, folder, say
        self._sampler: Sampler = make_sampler(factory.config.space, factory.config.trials, factory.recipe.seed)
        self._trainer = ConcurrentTrainer(factory.lm)
        self._saves = 0

    def run(self, on_progress: Callable[[], object] = lambda: None) -> ConcurrentRun:
        """Run all trials, from the start or from the saved state, and return the run of the best.

        Args:
            on_progress: called whenever a trial was evaluated or has ended.

        Raises:
            TrainingError: no trial could be learned to its end, or the saved state cannot be read.
        """
        self._restore_state()
        self._start_trials()
        while self._trainer.runs:
            self.batching_stats.step(self._factory.lm, self._trainer)
            evaluated = [run for run in self._trainer.runs if self._was_evaluated(run)]
            for run in evaluated:
                self._record_evaluation(run)
            self._drop_losers([run for run in evaluated if not run.finished])
            ended = [run for run in self._trainer.runs if run.finished]
            for run in ended:
                self._complete(run)
            self._start_trials()
            if evaluated or ended:
                self._save_state()
                on_progress()
        if self.best_run is None:
            error = next((trial.error for trial in self.trials if trial.error), "all were dropped")
            raise TrainingError(f"no trial could be learned to its end; {error}.")
        return self.best_run

    def _start_trials(self) -> None:
        """Start trials until as many learn as may at once."""
        config = self._factory.config
        while len(self._trainer.runs) < config.at_once and len(self.trials) < config.trials:
            params = self._sampler.ask()
            if params is None:
                return
            run = self._factory.create_run(params, self._first)
            trial = Trial(len(self.trials), params, run.steps, run.batch_size)
            self.trials.append(trial)
            self._trainer.add(self._concurrent_run(trial, run))

    def _concurrent_run(self, trial: Trial, run: Run) -> ConcurrentRun:
        return ConcurrentRun(str(trial.number), TaskEvaluator(run, self._engine, run.task("run"), run.initial_prompt()))

    def _trial(self, run: ConcurrentRun) -> Trial:
        return self.trials[int(run.name)]

    def _was_evaluated(self, run: ConcurrentRun) -> bool:
        """Whether the step just done ended with an evaluation that gave finite metrics."""
        return run.step > self._trial(run).step and "eval_score" in run.log_history[-1] and not run.error

    def _record_evaluation(self, run: ConcurrentRun) -> None:
        trial = self._trial(run)
        trial.step = run.step
        metrics = {name.removeprefix("eval_"): value for name, value in run.log_history[-1].items()}
        trial.evaluations.append(metrics)
        trial.best_score = run.best[0] if run.best is not None else None
        self._sampler.report(trial.number, len(trial.evaluations), metrics["score"])

    def _drop_losers(self, runs: list[ConcurrentRun]) -> None:
        """Stop those that lose at the rung that they have just reached."""
        eta = self._factory.config.eta
        if eta is None:
            return
        evaluated = {self._trial(run).number: run for run in runs}
        for rung in rungs(eta, EVALUATIONS):
            arrived = [self.trials[number] for number in evaluated if len(self.trials[number].evaluations) == rung]
            for trial in trials_to_drop(self.trials, arrived, rung, eta):
                trial.state = "dropped"
                self._leave(evaluated[trial.number])

    def _complete(self, run: ConcurrentRun) -> None:
        """Close the trial of a run that has ended by itself."""
        trial = self._trial(run)
        trial.step, trial.error = run.step, run.error
        trial.state = "failed" if run.error else "complete"
        if trial.state == "complete":
            rivals = [trial] if self.best_run is None else [trial, self._trial(self.best_run)]
            if rank_trials(rivals)[0] is trial:
                self.best_run = run
        self._leave(run)

    def _leave(self, run: ConcurrentRun) -> None:
        trial = self._trial(run)
        self._sampler.tell(trial)
        self._trainer.remove(run)
        outcome = trial.error or ", ".join(f"{name} {value:.4g}" for name, value in trial.headline_metrics.items())
        self._say(
            f"trial {trial.number} ({format_params(trial.params)}) {trial.state} after {trial.step} steps: {outcome}"
        )

    def _save_state(self) -> None:
        """Write all trials and runs; the file of tensors first, then the one that names it."""
        runs = {run.name: run for run in (*self._trainer.runs, *([self.best_run] if self.best_run else []))}
        tensors = {f"{name}:{key}": value for name, run in runs.items() for key, value in run.state_tensors().items()}
        self._saves += 1
        file = self._folder.path / f"lanes-{self._saves}.safetensors"
        try:
            save_file({key: value.contiguous() for key, value in tensors.items()}, file)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{file} cannot be written: {error}; use another --out.") from error
        self._folder.write_state(
            {
                "tensors": file.name,
                "trials": [trial.to_json() for trial in self.trials],
                "learning": [run.name for run in self._trainer.runs],
                "champion": self.best_run.name if self.best_run is not None else None,
                "lanes": {name: run.state_json() for name, run in runs.items()},
                "pairs": self.batching_stats.timings,
            }
        )
        for old in self._folder.path.glob("lanes-*.safetensors"):
            if old != file:
                old.unlink()

    def _restore_state(self) -> None:
        """Inverse of `_save_state`; nothing where none was saved."""
        state = self._folder.read_state()
        if state is None:
            return
        with self._folder.restoring():
            self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        file = self._folder.path / state["tensors"]
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{file} is damaged, so the search cannot be resumed; use another --out.") from error
        self._saves = int(file.stem.removeprefix("lanes-"))
        self.batching_stats.timings = [(int(n), float(shared), float(single)) for n, shared, single in state["pairs"]]
        self.trials = [Trial.from_json(record) for record in state["trials"]]
        self._replay_trials()
        runs = {name: self._restored_run(name, saved, tensors) for name, saved in state["lanes"].items()}
        for name in state["learning"]:
            self._trainer.add(runs[name])
        self.best_run = runs[state["champion"]] if state["champion"] is not None else None

    def _replay_trials(self) -> None:
        """Tell the sampler all that an earlier process told it."""
        for trial in self.trials:
            self._sampler.replay(trial.params)
        for trial in self.trials:
            for number, metrics in enumerate(trial.evaluations, 1):
                self._sampler.report(trial.number, number, metrics["score"])
            if trial.state != "learning":
                self._sampler.tell(trial)

    def _restored_run(self, name: str, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ConcurrentRun:
        trial = self.trials[int(name)]
        run = self._concurrent_run(trial, self._factory.create_run(trial.params, self._first))
        prefix = f"{name}:"
        run.load_state(state, {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
        return run
