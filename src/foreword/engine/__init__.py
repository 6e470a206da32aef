"""Engines generate and score with prefixes; they speak token ids and never read the bank."""
