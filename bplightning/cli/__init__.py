"""The command line: one module a verb, and the parser that they share."""

from bplightning.cli.verbs import main

__all__ = ["main"]
