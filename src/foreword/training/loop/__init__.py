"""The training loop: batches, losses, schedule, evaluation, checkpoints and the run directory."""
