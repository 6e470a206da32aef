"""Rows of a data file become checked training data, tokenized examples and batches."""
