"""The command line: one command a file, each parses, calls and prints."""

from whence.cli.main import app, main

__all__ = ["app", "main"]
