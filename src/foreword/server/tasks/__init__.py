"""The routes of tasks: classify, tag, and publishing tasks while the server runs."""
