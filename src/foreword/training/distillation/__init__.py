"""Distilling a long text into a short learned prefix, on conversations that the model makes about it by itself."""
