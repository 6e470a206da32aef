"""`fit`: one run of the Trainer, from the newest checkpoint if it is resumed."""

from __future__ import annotations

from foreword.evaluation.curves import write_curves
from foreword.training.loop.gradient_checkpointing import gradient_checkpointing
from foreword.training.loop.inputs import Evaluator
from foreword.training.loop.progress import ProgressLines
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.trainer import PrefixTrainer


def fit(scorer: Evaluator, folder: RunDir) -> None:
    """Leave the best values seen on the held-out rows in what the scorer watches."""
    recipe = scorer.run.recipe
    with ProgressLines() as progress, gradient_checkpointing(scorer.run.lm, recipe.checkpointing):
        trainer = PrefixTrainer(scorer.run, scorer, folder, progress)
        checkpoint = folder.newest_checkpoint() if recipe.resume else None
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        if trainer.is_world_process_zero():
            folder.write_history(trainer.state.log_history)
            write_curves(trainer.state.log_history, folder.path / "curves.png")
