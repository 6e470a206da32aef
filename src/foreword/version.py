"""The version, apart from the package root so that any room may read it."""

__version__ = "0.1.0"
