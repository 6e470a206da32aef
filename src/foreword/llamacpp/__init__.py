"""llama.cpp as an engine: prefixes of a bank written into its sequences, on models in GGUF files. Nothing here loads
PyTorch.

`compat` is the only file that touches the library's own names. Nothing here is imported before llama.cpp is asked for.
"""
