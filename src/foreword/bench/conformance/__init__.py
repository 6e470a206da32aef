"""The `conformance` workload: every model family beside plain Transformers."""
