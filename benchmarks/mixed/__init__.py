"""The `mixed` workload: many requests behind many learned prefixes, all at once."""
