"""The `conformance` workload: tiny models of many families in every column."""
