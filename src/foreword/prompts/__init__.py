"""Learning methods as prompt encoders, their initial values, and lowering to a `KVPrefix`."""
