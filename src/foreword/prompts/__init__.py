"""Prompt encoders, their initial values, and lowering: everything that makes a `KVPrefix`."""
