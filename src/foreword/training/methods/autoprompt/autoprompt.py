"""AutoPrompt: real tokens in front, found by trying what the gradient promises (Shin et al. 2020, arXiv:2010.15980).

The result is text: a static prefix, or for an encoder, whose text cannot be computed ahead, a part of the template.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

from foreword.core import Task
from foreword.engine.protocol import EngineProtocol
from foreword.errors import SettingError
from foreword.evaluation.curves import write_curves
from foreword.models import LanguageModel
from foreword.prompts.lower import lower_tokens
from foreword.prompts.trigger import TriggerTokens
from foreword.text.request import static_ids
from foreword.training.loop.baseline import best_task, format_metrics
from foreword.training.loop.distributed import require_single_process
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.trainable_prompt import TrainablePrompt
from foreword.training.methods.autoprompt.candidates import Trigger
from foreword.training.methods.autoprompt.token_filter import TokenFilter
from foreword.training.methods.autoprompt.trigger_search import TriggerSearch
from foreword.training.methods.base import MethodResult, Say
from foreword.training.run import Run

# Evaluations of a search on the way.
EVALUATIONS = 8
UNUSED = ("lr", "epochs", "patience", "accumulate", "checkpointing", "members", "warm_start", "report_to")


def check(run: Run) -> None:
    """Raise UsageError for a run that writes text, or a flag that a search does not use."""
    if run.material.verbalizer is None:
        raise SettingError(
            "method", "--method autoprompt searches with the words of labels; give a --template with {mask}."
        )
    run.recipe.refuse(*UNUSED)
    require_single_process("--method autoprompt")
    if run.recipe.init == "labels":
        raise SettingError("init", "--init labels would put the answers into the trigger; use --init vocab or text.")


def learn(
    run: Run, engine: EngineProtocol, task: Task, start: TrainablePrompt, folder: RunDir, say: Say
) -> MethodResult:
    """Search for a trigger, from the last saved one on. Raises UsageError if there is none to start from."""
    tokens = start.encoder
    assert isinstance(tokens, TriggerTokens)
    search = TriggerSearch.of(run, start)
    learned = TrainableTrigger(tokens, search.spelling)
    scorer = TaskEvaluator(search.run, engine, search.run.task(task.name), learned)
    state = _searched(search, scorer, learned, folder, say)
    tokens.change(state.best)
    say(f"trigger: {learned.text!r}")
    folder.write_history(state.log)
    write_curves(state.log, folder.path / "curves.png")
    templates = search.run.material.templates
    tasks = [learned.become(run.lm, replace(scorer.task, template=template.source)) for template in templates]
    chosen, report = best_task(search.run, engine, tasks)
    return MethodResult(chosen, report, parameters=len(state.best))


class TrainableTrigger(TrainablePrompt):
    """Trigger tokens, and the task that has their text."""

    def __init__(self, tokens: TriggerTokens, spelling: TokenFilter) -> None:
        super().__init__(tokens)
        self.tokens, self._spelling = tokens, spelling

    @property
    def text(self) -> str:
        """Of the trigger as it is now."""
        return self._spelling.text(self.tokens.trigger)

    def become(self, lm: LanguageModel, task: Task) -> Task:
        if lm.causal:
            prefix = lower_tokens(lm, static_ids(lm.tokenizer, "prompt", self.text))
            return replace(task, kind="prompt", text=self.text, prefix=prefix)
        literal = self.text.replace("{", "{{").replace("}", "}}")
        return replace(task, template=literal + (task.template or ""))


@dataclass(frozen=True)
class SearchState:
    """Where a search stands.

    Attributes:
        step: steps that are done.
        trigger: the tokens now.
        best: those with the best held-out score so far.
        score: theirs.
        log: figures by step, named as the Trainer names them.
    """

    step: int
    trigger: Trigger
    best: Trigger
    score: float
    log: tuple[dict[str, Any], ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SearchState:
        """Of a file, which makes lists of tuples."""
        return cls(data["step"], tuple(data["trigger"]), tuple(data["best"]), data["score"], tuple(data["log"]))

    def next(self, trigger: Trigger, loss: float, metrics: dict[str, float] | None) -> SearchState:
        """One step on, with the held-out figures if there are any."""
        entry = {"step": self.step + 1, "loss": loss, **{f"eval_{name}": v for name, v in (metrics or {}).items()}}
        better = metrics is not None and metrics["score"] > self.score
        best, score = (trigger, metrics["score"]) if metrics is not None and better else (self.best, self.score)
        return SearchState(self.step + 1, trigger, best, score, (*self.log, entry))


def _searched(
    search: TriggerSearch, scorer: TaskEvaluator, learned: TrainableTrigger, folder: RunDir, say: Say
) -> SearchState:
    tokens, known = learned.tokens, folder.state()
    if known is not None:
        state = SearchState.from_json(known)
    else:
        tokens.change(search.spelling.near(tokens.trigger, Random(search.run.recipe.seed)))
        state = SearchState(0, tokens.trigger, tokens.trigger, scorer()["score"])
    every = -(-search.steps // EVALUATIONS)
    tokens.change(state.trigger)
    while state.step < search.steps:
        loss = search.step(state.step, tokens)
        due = (state.step + 1) % every == 0 or state.step + 1 == search.steps
        metrics = scorer() if due else None
        state = state.next(tokens.trigger, loss, metrics)
        folder.write_state(vars(state))
        if metrics is not None:
            say(f"step {state.step}/{search.steps}  loss {loss:.3f}  {format_metrics(metrics)}  {learned.text!r}")
    return state
