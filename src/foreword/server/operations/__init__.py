"""What an operator sets and watches: keys, rate limits, request limits, access log, metrics, probes, errors."""
