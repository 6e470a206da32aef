"""Multi-task runs: many tasks, each with its own rows, learned in shared batches."""
