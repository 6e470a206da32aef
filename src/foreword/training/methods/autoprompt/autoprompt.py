"""AutoPrompt: a trigger of real tokens, found by gradient-guided search (Shin et al. 2020, arXiv:2010.15980).

The result is text: a static prefix, or for an encoder, which cannot cache one, a part of the template.
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
from foreword.progress import Say
from foreword.prompts.lower import lower_tokens
from foreword.prompts.trigger import TriggerTokens
from foreword.text.task_prompts import static_token_ids
from foreword.training.loop.distributed import require_single_process
from foreword.training.loop.evaluator import TaskEvaluator
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.selection import best_task, format_metrics
from foreword.training.methods.autoprompt.candidates import Trigger
from foreword.training.methods.autoprompt.token_filter import TokenFilter
from foreword.training.methods.autoprompt.trigger_search import TriggerSearch
from foreword.training.methods.base import MethodResult
from foreword.training.modules.trainable_prompt import TrainablePrompt
from foreword.training.run import Run

# Evaluations of a search.
SEARCH_EVALUATIONS = 8
# Flags that a search does not use.
UNUSED_FLAGS = ("lr", "epochs", "patience", "accumulate", "checkpointing", "members", "warm_start", "report_to")


def check(run: Run) -> None:
    """Raise UsageError for a run that writes text, or a flag that a search does not use."""
    if run.lm.is_encoder_decoder:
        raise SettingError(
            "method",
            f"{run.lm.name} is an encoder-decoder, which --method autoprompt searches no words for; use --method "
            "prompt-tuning.",
        )
    if run.data.verbalizer is None:
        raise SettingError(
            "method", "--method autoprompt searches with the words of labels; give a --template with {mask}."
        )
    run.recipe.reject_unused(*UNUSED_FLAGS)
    require_single_process("--method autoprompt")
    if run.recipe.init == "labels":
        raise SettingError("init", "--init labels would put the answers into the trigger; use --init vocab or text.")


def train(
    run: Run, engine: EngineProtocol, task: Task, prompt: TrainablePrompt, run_dir: RunDir, say: Say
) -> MethodResult:
    """Search for a trigger, from the last saved one on. Raises UsageError if there is none to start from."""
    tokens = prompt.encoder
    assert isinstance(tokens, TriggerTokens)
    search = TriggerSearch.from_run(run, prompt)
    trigger = TrainableTrigger(tokens, search.token_filter)
    evaluator = TaskEvaluator(search.run, engine, search.run.task(task.name), trigger)
    state = _search(search, evaluator, trigger, run_dir, say)
    tokens.set_tokens(state.best)
    say(f"trigger: {trigger.text!r}")
    run_dir.write_history(state.log)
    write_curves(state.log, run_dir.path / "curves.png")
    tasks = [trigger.to_task(run.lm, each) for each in search.run.data.tasks(evaluator.task)]
    return MethodResult(*best_task(search.run, engine, tasks), trained_parameters=len(state.best))


class TrainableTrigger(TrainablePrompt):
    """Trigger tokens, whose task has their text."""

    def __init__(self, tokens: TriggerTokens, token_filter: TokenFilter) -> None:
        super().__init__(tokens)
        self.tokens, self._token_filter = tokens, token_filter

    @property
    def text(self) -> str:
        """The present trigger as text."""
        return self._token_filter.decode(self.tokens.trigger)

    def to_task(self, lm: LanguageModel, task: Task) -> Task:
        if lm.causal:
            prefix = lower_tokens(lm, static_token_ids(lm.tokenizer, "prompt", self.text))
            return replace(task, kind="prompt", text=self.text, prefix=prefix)
        literal = self.text.replace("{", "{{").replace("}", "}}")
        return replace(task, template=literal + (task.template or ""))


@dataclass(frozen=True)
class SearchState:
    """The resumable state of a search; its fields are the keys of ``state.json``.

    Attributes:
        step: steps that are done.
        trigger: the present tokens.
        best: the tokens with the best held-out score so far.
        score: of ``best``.
        log: metrics by step, named as in the Trainer's log.
    """

    step: int
    trigger: Trigger
    best: Trigger
    score: float
    log: tuple[dict[str, Any], ...] = ()

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SearchState:
        """Inverse of ``vars``, after JSON has made lists of tuples."""
        trigger, best = (tuple(map(int, data[name])) for name in ("trigger", "best"))
        return cls(int(data["step"]), trigger, best, float(data["score"]), tuple(map(dict, data["log"])))

    def advanced(self, trigger: Trigger, loss: float, metrics: dict[str, float] | None) -> SearchState:
        """The state after one more step, with held-out metrics if it was evaluated."""
        entry = {"step": self.step + 1, "loss": loss, **{f"eval_{name}": v for name, v in (metrics or {}).items()}}
        better = metrics is not None and metrics["score"] > self.score
        best, score = (trigger, metrics["score"]) if metrics is not None and better else (self.best, self.score)
        return SearchState(self.step + 1, trigger, best, score, (*self.log, entry))


def _search(
    search: TriggerSearch, evaluator: TaskEvaluator, trigger: TrainableTrigger, run_dir: RunDir, say: Say
) -> SearchState:
    """Search to the last step, from the saved state if there is one."""
    tokens, saved = trigger.tokens, run_dir.read_state()
    if saved is not None:
        with run_dir.restoring():
            state = SearchState.from_json(saved)
    else:
        tokens.set_tokens(search.token_filter.repaired(tokens.trigger, Random(search.run.recipe.seed)))
        state = SearchState(0, tokens.trigger, tokens.trigger, evaluator()["score"])
    every = -(-search.steps // SEARCH_EVALUATIONS)
    tokens.set_tokens(state.trigger)
    while state.step < search.steps:
        loss = search.step(state.step, tokens)
        due = (state.step + 1) % every == 0 or state.step + 1 == search.steps
        metrics = evaluator() if due else None
        state = state.advanced(tokens.trigger, loss, metrics)
        run_dir.write_state(vars(state))
        if metrics is not None:
            say(f"step {state.step}/{search.steps}  loss {loss:.3f}  {format_metrics(metrics)}  {trigger.text!r}")
    return state
