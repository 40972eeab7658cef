"""The command line: one module a verb, the table of verbs, and the program that runs them."""

from bplightning.cli.program import main

__all__ = ["main"]
