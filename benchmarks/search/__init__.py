"""The `search` workload."""
