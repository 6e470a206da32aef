"""Unforked vLLM as an engine: a KV connector that loads prefixes into its paged cache, and two servers in front of it.

All vLLM symbols are in `compat`. No other module of the package imports this one before vLLM is asked for.
"""
