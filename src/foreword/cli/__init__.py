"""The command line: each file parses one command, calls one function and prints."""

from foreword.cli.app import main

__all__ = ["main"]
