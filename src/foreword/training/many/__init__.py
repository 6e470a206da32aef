"""Learning many tasks, each with its own rows, in the same batches: only so many are in memory at a time."""
