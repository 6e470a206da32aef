"""The `train` workload: one training step, and the curve of fifty, beside PEFT's."""
