"""`TrialScheduler`: trials that learn side by side, and give their place to others when they lose or are done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

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
from foreword.training.search.config import SearchConfig, varied
from foreword.training.search.samplers import Sampler, make_sampler, shown
from foreword.training.search.space import Point
from foreword.training.search.trial import Trial, losers, ranking, rungs


@dataclass(frozen=True)
class TrialFactory:
    """How a point becomes a run.

    Attributes:
        lm: the frozen model of all.
        recipe: what all have in common.
        plan: what differs.
        material: the rows of all.
        transfers: tasks that ``init: task:NAME`` may name.
    """

    lm: LanguageModel
    recipe: Recipe
    plan: SearchConfig
    material: TrainingData
    transfers: Mapping[str, Task] = field(default_factory=dict)

    def run(self, point: Point, like: Run | None = None) -> Run:
        """The run of a point. Raises UsageError and its kin.

        Args:
            like: a run of another point, whose examples it shares if they are the same tokens.
        """
        recipe = self.plan.recipe(self.recipe, point)
        transfer = self.transfers.get(recipe.parent) if recipe.parent is not None else None
        with varied(point):
            return Run.from_recipe(self.lm, recipe, transfer, self.material, like=like)


class TrialScheduler:
    """Who learns now, who has, and who is best.

    Args:
        entry: makes the runs.
        first: the run of any point; others share its examples.
        engine: serves the model.
        folder: where it stands is kept, so that a search that was killed can go on.
        say: gets a line for every trial that ends.

    Attributes:
        trials: all that have started.
        savings: what was measured on the way.
        champion: the best of those that have learned to the end; ``None`` as long as there is none.
    """

    def __init__(self, entry: TrialFactory, first: Run, engine: EngineProtocol, folder: RunDir, say: Say) -> None:
        self.trials: list[Trial] = []
        self.savings = BatchingStats()
        self.champion: ConcurrentRun | None = None
        self._entry, self._first, self._engine, self._folder, self._say = entry, first, engine, folder, say
        self._points: Sampler = make_sampler(entry.plan.space, entry.plan.trials, entry.recipe.seed)
        self._together = ConcurrentTrainer(entry.lm)
        self._saved = 0

    def run(self, news: Callable[[], object] = lambda: None) -> None:
        """To the end, from the start or from where an earlier process was.

        Args:
            news: called whenever a trial was evaluated or has ended.

        Raises:
            TrainingError: no trial could be learned to its end, or what was kept cannot be read.
        """
        self._restore()
        self._fill()
        while self._together.lanes:
            self.savings.step(self._entry.lm, self._together)
            judged = [lane for lane in self._together.lanes if self._is_news(lane)]
            for lane in judged:
                self._note(lane)
            self._halve([lane for lane in judged if not lane.finished])
            over = [lane for lane in self._together.lanes if lane.finished]
            for lane in over:
                self._end(lane)
            self._fill()
            if judged or over:
                self._save()
                news()
        if self.champion is None:
            raise TrainingError(f"no trial could be learned to its end; {self._faults()}")

    def _fill(self) -> None:
        """Start trials in every free place."""
        plan = self._entry.plan
        while len(self._together.lanes) < plan.at_once and len(self.trials) < plan.trials:
            point = self._points.ask()
            if point is None:
                return
            run = self._entry.run(point, self._first)
            trial = Trial(len(self.trials), point, run.steps, run.batch_size)
            self.trials.append(trial)
            self._together.join(self._lane(trial, run))

    def _lane(self, trial: Trial, run: Run) -> ConcurrentRun:
        return ConcurrentRun(str(trial.number), TaskEvaluator(run, self._engine, run.task("run"), run.initial_prompt()))

    def _trial(self, lane: ConcurrentRun) -> Trial:
        return self.trials[int(lane.name)]

    def _is_news(self, lane: ConcurrentRun) -> bool:
        """Whether the step just done was evaluated, and gave numbers."""
        return lane.step > self._trial(lane).step and "eval_score" in lane.log_history[-1] and not lane.error

    def _note(self, lane: ConcurrentRun) -> None:
        """What an evaluation has shown."""
        trial = self._trial(lane)
        trial.step = lane.step
        figures = {name.removeprefix("eval_"): value for name, value in lane.log_history[-1].items()}
        trial.evaluations.append(figures)
        trial.best = lane.best[0] if lane.best is not None else None
        self._points.hear(trial.number, len(trial.evaluations), figures["score"])

    def _halve(self, lanes: list[ConcurrentRun]) -> None:
        """Drop those of them that lose at the rung that they have come to."""
        eta = self._entry.plan.eta
        if eta is None:
            return
        arrived = {self._trial(lane).number: lane for lane in lanes}
        for rung in rungs(eta, EVALUATIONS):
            here = [self.trials[number] for number in arrived if len(self.trials[number].evaluations) == rung]
            for trial in losers(self.trials, here, rung, eta):
                trial.state = "dropped"
                self._leave(arrived[trial.number])

    def _end(self, lane: ConcurrentRun) -> None:
        trial = self._trial(lane)
        trial.step, trial.why = lane.step, lane.error
        trial.state = "failed" if lane.error else "complete"
        if trial.state == "complete" and self._beats(trial):
            self.champion = lane
        self._leave(lane)

    def _beats(self, trial: Trial) -> bool:
        if self.champion is None:
            return True
        return ranking([trial, self._trial(self.champion)])[0] is trial

    def _leave(self, lane: ConcurrentRun) -> None:
        trial = self._trial(lane)
        self._points.end(trial)
        self._together.leave(lane)
        self._say(f"trial {trial.number} ({shown(trial.point)}) {trial.state} after {trial.step} steps: {_how(trial)}")

    def _faults(self) -> str:
        return next((trial.why for trial in self.trials if trial.why), "all were dropped") + "."

    def _save(self) -> None:
        """Where all stand; the file of the tensors before the one that names it."""
        lanes = {lane.name: lane for lane in (*self._together.lanes, *([self.champion] if self.champion else []))}
        tensors = {
            f"{name}:{key}": value for name, lane in lanes.items() for key, value in lane.state_tensors().items()
        }
        self._saved += 1
        file = f"lanes-{self._saved}.safetensors"
        try:
            save_file({key: value.contiguous() for key, value in tensors.items()}, self._folder.path / file)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{self._folder.path / file} cannot be written: {error}; use another --out.") from error
        self._folder.write_state(
            {
                "tensors": file,
                "trials": [trial.to_json() for trial in self.trials],
                "learning": [lane.name for lane in self._together.lanes],
                "champion": self.champion.name if self.champion is not None else None,
                "lanes": {name: lane.state_json() for name, lane in lanes.items()},
                "pairs": self.savings.pairs,
            }
        )
        for old in self._folder.path.glob("lanes-*.safetensors"):
            if old.name != file:
                old.unlink()

    def _restore(self) -> None:
        state = self._folder.state()
        if state is None:
            return
        tensors = self._tensors(state)
        self.savings.pairs = [(int(count), float(joint), float(single)) for count, joint, single in state["pairs"]]
        self._saved = int(state["tensors"].removeprefix("lanes-").removesuffix(".safetensors"))
        for found in state["trials"]:
            trial = Trial.from_json(found)
            self.trials.append(trial)
            self._points.again(trial.point)
        for trial in self.trials:
            for place, figures in enumerate(trial.evaluations, 1):
                self._points.hear(trial.number, place, figures["score"])
            if trial.state != "learning":
                self._points.end(trial)
        lanes = {name: self._restored(name, kept, tensors) for name, kept in state["lanes"].items()}
        for name in state["learning"]:
            self._together.join(lanes[name])
        self.champion = lanes[state["champion"]] if state["champion"] is not None else None

    def _restored(self, name: str, kept: Mapping[str, Any], tensors: Mapping[str, Any]) -> ConcurrentRun:
        trial = self.trials[int(name)]
        lane = self._lane(trial, self._entry.run(trial.point, self._first))
        mine = {key.removeprefix(f"{name}:"): value for key, value in tensors.items() if key.startswith(f"{name}:")}
        lane.load_state(kept, mine)
        return lane

    def _tensors(self, state: Mapping[str, Any]) -> dict[str, Any]:
        file = self._folder.path / state["tensors"]
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{file} is damaged, so the search cannot be resumed; use another --out.") from error


def _how(trial: Trial) -> str:
    """The figures that trials are compared by, or what went wrong."""
    return trial.why or ", ".join(f"{name} {value:.4g}" for name, value in trial.headline.items())
