"""What is wrong with an argument list, in one line."""

from __future__ import annotations

from argparse import ArgumentError
from typing import NoReturn

from bplightning.errors import UserError


class OneLine:
    """For a parser, before `argparse.ArgumentParser` or one derived from it."""

    prog: str
    exit_on_error: bool

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line with what is wrong, and where to read on; the usage of `fit` alone would fill two screens.

        Args:
            message: What is wrong.
            ex: The exception that says so, where jsonargparse has one.

        Raises:
            UserError: Always, but where `exit_on_error` is off: the command line prints it, and Python has it as any
                other.
        """
        if not self.exit_on_error:
            raise ArgumentError(None, message) from ex
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        raise UserError(f"{' '.join(message.split())} (see {program} --help)") from ex
