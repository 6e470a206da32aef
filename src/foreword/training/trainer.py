"""`PrefixTrainer`: the Transformers Trainer on ragged batches, evaluating through the engine that will serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from foreword.models import LanguageModel
from foreword.prompts.base import PromptEncoder
from foreword.training.data import Example, schedule
from foreword.training.losses import Loss
from foreword.training.recipe import Recipe

SCORE = "eval_score"


class Learner(nn.Module):
    """The trainable encoder and its loss. The frozen model is held outside the module tree, so that optimizer,
    checkpoints and distributed wrappers see only what is learned."""

    def __init__(self, lm: LanguageModel, encoder: PromptEncoder, loss: Loss) -> None:
        super().__init__()
        self.encoder = encoder
        self._run = lambda examples: loss(lm, encoder.front(), examples)

    def forward(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return {"loss": self._run(examples)}


class PrefixTrainer(Trainer):
    """Trainer over a fixed schedule of batches; one epoch of it is the whole run.

    Args:
        learner: what is trained.
        examples: training data in tokens.
        batches: places in ``examples``, a batch a step.
        held: evaluation data; the Trainer wants to see it, ``score`` uses it.
        score: metrics of the encoder as it stands; ``score`` among them chooses the best checkpoint.
    """

    def __init__(
        self,
        learner: Learner,
        args: TrainingArguments,
        examples: Sequence[Example],
        batches: list[list[int]],
        held: Sequence[Any],
        score: Callable[[], dict[str, float]],
        callbacks: list[TrainerCallback],
    ) -> None:
        data: Any = {"train_dataset": list(examples), "eval_dataset": list(held)}
        super().__init__(model=learner, args=args, callbacks=callbacks, **data)
        self._batches = batches
        self._score = score
        self.remove_callback(PrinterCallback)  # it prints to stdout, which belongs to --json

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=_Schedule(self._batches),  # type: ignore[arg-type]
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


class _Schedule:
    """A batch sampler that yields a list of batches as it stands."""

    def __init__(self, batches: list[list[int]]) -> None:
        self._batches = batches
        self.batch_size = len(batches[0])
        self.drop_last = False

    def __iter__(self):
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def arguments(recipe: Recipe, steps: int, lr: float, out: Path, device: torch.device) -> TrainingArguments:
    """One cycle: a tenth of the steps up, then down along a cosine; five evaluations on the way."""
    every = max(1, -(-steps // 5))
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 10),
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
        logging_steps=max(1, steps // 20),
        seed=recipe.seed,
        report_to=recipe.report_to,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
    )


def batches(examples: Sequence[Example], recipe: Recipe, steps: int) -> list[list[int]]:
    return schedule([example.size for example in examples], recipe.batch_size, steps, recipe.seed)
