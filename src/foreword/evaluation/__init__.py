"""How good a task is: predictions through an engine, as they would be served, and their metrics."""
