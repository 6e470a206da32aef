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
from foreword.evaluation.curves import write_curves
from foreword.progress import Progress
from foreword.text.ragged import batch_by_tokens
from foreword.training.data.examples import Example, examples_of
from foreword.training.loop.gradient_checkpointing import gradient_checkpointing
from foreword.training.loop.inputs import Evaluator, TrainerInputs
from foreword.training.loop.interruption import StopAfterStep
from foreword.training.loop.progress import ProgressLines
from foreword.training.loop.run_dir import RunDir
from foreword.training.modules.prompt_module import PromptModule
from foreword.training.modules.trainable_prompt import TrainablePrompt

SCORE = "eval_score"
# Evaluations of a run, each with a checkpoint.
EVALUATIONS = 5
# Tokens that run forward and backward together, unless one example has more: what the layers keep for the way back
# grows with them (1.7 MB a token on a model of 135 million parameters), and a processor is no faster with more.
MAX_PASS_TOKENS = 2048


def fit(run: TrainerInputs, prompt: TrainablePrompt, evaluator: Evaluator, run_dir: RunDir) -> None:
    """Train a prompt, from the newest checkpoint if the run is resumed; it ends with its best values."""
    recipe = run.recipe
    with (
        StopAfterStep() as stop,
        ProgressLines() as progress,
        gradient_checkpointing(run.lm, recipe.checkpointing),
    ):
        trainer = PrefixTrainer(run, prompt, evaluator, run_dir, progress)
        trainer.add_callback(stop)
        checkpoint = run_dir.newest_checkpoint() if recipe.resume else None
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        if trainer.is_world_process_zero():
            run_dir.write_history(trainer.state.log_history)
            write_curves(trainer.state.log_history, run_dir.path / "curves.png")


class PrefixTrainer(Trainer):
    """Trainer over a fixed schedule of batches; one epoch of it is the whole run.

    Args:
        run: model, data and settings.
        prompt: trained in place.
        evaluator: metrics of the prompt.
        run_dir: gets the checkpoints.
        progress: prints steps and metrics.
    """

    def __init__(
        self,
        run: TrainerInputs,
        prompt: TrainablePrompt,
        evaluator: Evaluator,
        run_dir: RunDir,
        progress: TrainerCallback,
    ) -> None:
        # The Trainer wants to see evaluation data, though the evaluator brings its own.
        data: Any = {"train_dataset": run.examples, "eval_dataset": run.validation_set}
        self._loss = run.loss(prompt)
        module = PromptModule(run.lm, prompt, self._loss)
        callbacks = [progress, _RelocatedBestCheckpoint()]
        if run.recipe.patience is not None:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=run.recipe.patience))
        try:
            super().__init__(module, training_arguments(run, run_dir.checkpoints), callbacks=callbacks, **data)
        except (ValueError, RuntimeError, ImportError) as error:
            raise SettingError("report_to", f"--report-to {run.recipe.report_to} cannot be used: {error}") from error
        if run.batch_size < run.recipe.accumulate * self.args.world_size:
            raise UsageError(
                f"a step has {run.batch_size} examples for {self.args.world_size} processes with "
                f"{run.recipe.accumulate} parts each; give a larger --batch-size."
            )
        self._run, self._prompt, self._evaluator, self._run_dir = run, prompt, evaluator, run_dir
        self.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to --json

    def get_train_dataloader(self) -> DataLoader:
        batches = (examples_of(self._run.examples, batch) for batch in self._run.batches)
        micro_batches = [part for batch in batches for part in self._micro_batches(batch)]
        # Every process takes its own examples of every batch, so nothing is left for `accelerate` to share out.
        return DataLoader(micro_batches, batch_size=1, collate_fn=lambda items: items[0])  # type: ignore[arg-type] - a list is a dataset

    def _micro_batches(self, batch: Sequence[Example]) -> list[dict[str, Any]]:
        """This process's examples of a step, in the parts that gradients are accumulated over.

        The Trainer divides by the number of parts and averages over processes; the normalizer undoes both, so that the
        gradient is that of the whole batch however it is cut.
        """
        processes, rank = self.args.world_size, self.args.process_index
        count = self._run.recipe.accumulate
        normalizer = self._loss.normalizer(batch) / (count * processes)
        own = batch[rank::processes]
        return [{"examples": own[part::count], "normalizer": normalizer} for part in range(count)]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.args, self._prompt)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of one part of a step, in passes of at most `MAX_PASS_TOKENS`; their gradients add up.

        With several processes it is one pass: they have to meet equally often.
        """
        if self.args.world_size > 1:
            return super().training_step(model, inputs, *args, **kwargs)
        sized = [(example, example.num_tokens) for example in inputs["examples"]]
        passes = [{**inputs, "examples": examples} for examples in batch_by_tokens(sized, MAX_PASS_TOKENS)]
        run_pass = super().training_step  # a comprehension has no `super()` of its own
        return torch.stack([run_pass(model, each, *args, **kwargs) for each in passes]).sum()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        value = loss[0] if isinstance(loss, tuple) else loss
        if not bool(value.isfinite()):
            newest = self._run_dir.newest_checkpoint()
            kept = f"the last good checkpoint is {newest}" if newest is not None else "no checkpoint was written yet"
            raise TrainingError(
                f"the loss of step {self.state.global_step + 1} is {float(value)}; {kept}; start again with a smaller "
                "--lr and another --out."
            )
        return loss

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        raise RuntimeError("evaluation goes through the engine, not through a data loader")

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with Progress(f"evaluating {len(self._run.validation_set)} rows"):
            metrics = {f"eval_{name}": value for name, value in self._evaluator().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _RelocatedBestCheckpoint(TrainerCallback):
    """Finds the best checkpoint of a resumed run whose folder has another path than when it was started.

    The Trainer would otherwise forget it, and end with the last values in place of the best.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
        if state.best_global_step is not None and best.is_dir():
            state.best_model_checkpoint = str(best)


def make_optimizer(arguments: TrainingArguments, prompt: TrainablePrompt) -> torch.optim.Optimizer:
    """The optimizer that the arguments name, over the parameter groups of the prompt."""
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    return kind(prompt.param_groups(options.pop("lr")), weight_decay=arguments.weight_decay, **options)


def training_arguments(run: TrainerInputs, checkpoints: Path) -> TrainingArguments:
    """Warm-up over a tenth of the steps, then cosine decay; `ConcurrentRun` follows the same arguments."""
    every = -(-run.steps // EVALUATIONS)
    arguments = TrainingArguments(
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
    arguments._n_gpu = min(arguments.n_gpu, 1)  # DataParallel cannot split a ragged batch; torchrun can share it out
    return arguments
