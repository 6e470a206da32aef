"""Operation of the server: API keys, rate limits, request limits, access log, metrics, probes, error responses."""
