"""`PrefixTrainer`: the Transformers Trainer on ragged batches, evaluating through the engine that will serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from foreword.errors import UsageError
from foreword.models import LanguageModel
from foreword.prompts.base import PromptEncoder
from foreword.training.data import Example
from foreword.training.folder import RunFolder
from foreword.training.losses import Loss
from foreword.training.run import Run
from foreword.training.score import Scorer

SCORE = "eval_score"
# Evaluations, and checkpoints with them, on the way.
EVALUATIONS = 5


class Learner(nn.Module):
    """The trainable encoder and its loss. The frozen model is no module of it, so that optimizer, checkpoints and
    distributed wrappers see only what is learned."""

    def __init__(self, lm: LanguageModel, encoder: PromptEncoder, loss: Loss) -> None:
        super().__init__()
        self.encoder = encoder
        self._lm, self._loss = lm, loss

    def forward(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return {"loss": self._loss(self._lm, self.encoder.front(), examples)}


class PrefixTrainer(Trainer):
    """Trainer over a fixed schedule of batches; one epoch of it is the whole run.

    Args:
        run: model, data and settings.
        scorer: metrics of the encoder as it stands, and the encoder itself.
        folder: gets the checkpoints.
        progress: what a person sees.
    """

    def __init__(self, run: Run, scorer: Scorer, folder: RunFolder, progress: TrainerCallback) -> None:
        # The Trainer wants to see evaluation data, though the scorer brings its own.
        data: Any = {"train_dataset": run.examples, "eval_dataset": run.held}
        learner = Learner(run.lm, scorer.encoder, run.loss)
        try:
            super().__init__(learner, arguments(run, folder), callbacks=[progress, _Moved()], **data)
        except (ValueError, RuntimeError, ImportError) as error:
            raise UsageError(f"--report-to {run.recipe.report_to} cannot be used: {error}") from error
        self._batches = run.batches
        self._score: Callable[[], dict[str, float]] = scorer
        self.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to --json

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type] - a list is a dataset
            batch_sampler=_Schedule(self._batches),
            collate_fn=lambda examples: {"examples": examples},
        )
        return self.accelerator.prepare(loader)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        raise RuntimeError("evaluation goes through the engine, not through a data loader")

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = {f"eval_{name}": value for name, value in self._score().items()}
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


class _Schedule(torch.utils.data.Sampler[list[int]]):
    """A batch sampler that yields a list of batches as it stands."""

    def __init__(self, batches: list[list[int]]) -> None:
        self._batches = batches
        self.batch_size = len(batches[0])
        self.drop_last = False

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def arguments(run: Run, folder: RunFolder) -> TrainingArguments:
    """One cycle: a tenth of the steps up, then down along a cosine."""
    every = -(-run.steps // EVALUATIONS)
    made = TrainingArguments(
        output_dir=str(folder.checkpoints),
        max_steps=run.steps,
        per_device_train_batch_size=run.batch_size,
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
