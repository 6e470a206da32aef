"""The `serve` workload: what the server costs over the engine behind it."""
