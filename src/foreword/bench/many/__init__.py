"""The `many` workload: a thousand published prefixes in a bounded memory."""
