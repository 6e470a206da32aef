"""The `step` workload: one decode step, and one prefill, beside nothing but their matrix products."""
