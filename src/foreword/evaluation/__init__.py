"""Evaluation of tasks: predictions through an engine, as they would be served, and their metrics."""
