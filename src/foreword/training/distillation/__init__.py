"""Distillation of a long text into a short learned prefix, on conversations that the model generates about it."""
