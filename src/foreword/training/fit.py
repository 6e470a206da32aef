"""`fit`: one run of the Trainer, from the newest checkpoint if it is resumed."""

from __future__ import annotations

from foreword.evaluation.curves import write_curves
from foreword.training.checkpointing import checkpointed
from foreword.training.course import Judge
from foreword.training.folder import RunFolder
from foreword.training.progress import ProgressLines
from foreword.training.trainer import PrefixTrainer


def fit(scorer: Judge, folder: RunFolder) -> None:
    """Leave the best values seen on the held-out rows in what the scorer watches."""
    recipe = scorer.run.recipe
    with ProgressLines() as progress, checkpointed(scorer.run.lm, recipe.checkpointing):
        trainer = PrefixTrainer(scorer.run, scorer, folder, progress)
        checkpoint = folder.newest_checkpoint() if recipe.resume else None
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
        if trainer.is_world_process_zero():
            folder.write_history(trainer.state.log_history)
            write_curves(trainer.state.log_history, folder.path / "curves.png")
