"""The `ttft` workload: time to the first token behind a long static prompt."""
