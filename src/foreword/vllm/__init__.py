"""vLLM, unforked, as an engine: a KV connector that puts prefixes into its paged cache, and two servers in front of it.

`door` is the only file that touches vLLM's own names. Nothing here is imported before vLLM is asked for.
"""
