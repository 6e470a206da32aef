"""Many tasks' prefixes learned in the same batches, beside one after another."""
