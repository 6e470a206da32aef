"""`PrefixTrainer`: the Transformers Trainer on ragged batches, evaluating through the engine that will serve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from foreword.errors import SettingError, TrainingError, UsageError
from foreword.training.data.examples import Example
from foreword.training.loop.inputs import Evaluator, TrainerInputs
from foreword.training.loop.prompt_module import PromptModule
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.trainable_prompt import TrainablePrompt

SCORE = "eval_score"
# Evaluations, and checkpoints with them, on the way.
EVALUATIONS = 5


class PrefixTrainer(Trainer):
    """Trainer over a fixed schedule of batches; one epoch of it is the whole run.

    Args:
        run: model, data and settings.
        scorer: metrics of what is learned as it stands, and that itself.
        folder: gets the checkpoints.
        progress: what a person sees.
    """

    def __init__(self, run: TrainerInputs, scorer: Evaluator, folder: RunDir, progress: TrainerCallback) -> None:
        # The Trainer wants to see evaluation data, though the scorer brings its own.
        data: Any = {"train_dataset": run.examples, "eval_dataset": run.held}
        self._loss = run.loss(scorer.learned)
        learner = PromptModule(run.lm, scorer.learned, self._loss)
        callbacks = [progress, _Moved()]
        if run.recipe.patience is not None:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=run.recipe.patience))
        try:
            super().__init__(learner, arguments(run, folder.checkpoints), callbacks=callbacks, **data)
        except (ValueError, RuntimeError, ImportError) as error:
            raise SettingError("report_to", f"--report-to {run.recipe.report_to} cannot be used: {error}") from error
        if run.batch_size < run.recipe.accumulate * self.args.world_size:
            raise UsageError(
                f"a step has {run.batch_size} examples for {self.args.world_size} processes with "
                f"{run.recipe.accumulate} parts each; give a larger --batch-size."
            )
        self._run = run
        self._folder = folder
        self._judge = scorer
        self.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to --json

    def get_train_dataloader(self) -> DataLoader:
        parts = [
            part
            for batch in self._run.batches
            for part in self._parts([self._run.examples[draw.place].at(draw.turn) for draw in batch])
        ]
        # Every process takes its own examples of every batch, so nothing is left for `accelerate` to share out.
        return DataLoader(parts, batch_size=1, collate_fn=lambda items: items[0])  # type: ignore[arg-type] - a list is a dataset

    def _parts(self, batch: Sequence[Example]) -> list[dict[str, Any]]:
        """This process's share of a step, in the parts that are run one after another.

        The Trainer divides by the number of parts and averages over processes; the weight undoes both, so that the
        gradient is that of the whole batch however it is cut.
        """
        processes, rank = self.args.world_size, self.args.process_index
        count = self._run.recipe.accumulate
        weight = self._loss.weight(batch) / (count * processes)
        mine = batch[rank::processes]
        return [{"examples": mine[part::count], "weight": weight} for part in range(count)]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = optimizer(self.args, self._judge.learned)
        return self.optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        value = loss[0] if isinstance(loss, tuple) else loss
        if not bool(value.isfinite()):
            best = self._folder.newest_checkpoint()
            kept = f"the last good checkpoint is {best}" if best is not None else "no checkpoint was written yet"
            raise TrainingError(
                f"the loss of step {self.state.global_step + 1} is {float(value)}; {kept}; start again with a smaller "
                "--lr and another --out."
            )
        return loss

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        raise RuntimeError("evaluation goes through the engine, not through a data loader")

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = {f"eval_{name}": value for name, value in self._judge().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Moved(TrainerCallback):
    """Finds the best checkpoint of a resumed run whose folder goes by another path than when it was started.

    The Trainer would otherwise forget it, and end with the last values in place of the best.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if state.best_global_step is not None and best.is_dir():
            state.best_model_checkpoint = str(best)


def optimizer(settings: TrainingArguments, learned: TrainablePrompt) -> torch.optim.Optimizer:
    """The one that ``settings`` name, over the groups of ``learned``."""
    kind, options = Trainer.get_optimizer_cls_and_kwargs(settings)
    return kind(learned.groups(options.pop("lr")), weight_decay=settings.weight_decay, **options)


def arguments(run: TrainerInputs, checkpoints: Path) -> TrainingArguments:
    """One cycle: a tenth of the steps up, then down along a cosine. `Lane` follows the same."""
    every = -(-run.steps // EVALUATIONS)
    made = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=run.steps,
        per_device_train_batch_size=run.batch_size,
        gradient_accumulation_steps=run.recipe.accumulate,
        learning_rate=run.lr,
        lr_scheduler_type="cosine",
        warmup_steps=run.steps // 10,
        weight_decay=0.0,
        max_grad_norm=1.0,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=SCORE,
        greater_is_better=True,
        logging_steps=max(1, run.steps // 20),
        seed=run.recipe.seed,
        report_to=run.recipe.report_to,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        use_cpu=run.lm.device.type == "cpu",
    )
    made._n_gpu = min(made.n_gpu, 1)  # DataParallel cannot split a ragged batch; torchrun can share it out
    return made
