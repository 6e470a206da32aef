"""llama.cpp as an engine: prefixes of a bank written into its sequences, on models in GGUF files. Nothing here loads
PyTorch.

All symbols of the library are in `compat`. No other module of the package imports this one before llama.cpp is asked
for.
"""
