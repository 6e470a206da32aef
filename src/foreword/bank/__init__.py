"""Versioned store of tasks. `bank.Bank` is the public name; `SPEC.md` says the format byte by byte."""
