"""The program: it finds the verb, runs it, and prints an error that the user can act on as one line.

``bplightning``, ``python -m bplightning`` and ``python cli.py`` are this one program.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from bplightning.cli.help_pages import ALL, PAGES, page
from bplightning.cli.verbs import TRAINING_VERBS, VERBS, verb_parser
from bplightning.errors import UserError, did_you_mean
from bplightning.io.ending import ends_on_signals, say
from bplightning.io.files import REFUSED, not_written
from bplightning.io.parser_errors import OneLine
from bplightning.io.printable import printable
from bplightning.io.provenance import own_version


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program.

    Args:
        argv: The words after the program's name; by default those of this process.
    """
    with ends_on_signals():
        _said(list(sys.argv[1:] if argv is None else argv))


def _said(args: list[str]) -> None:
    """Run the program; what the user can act on is one line."""
    try:
        _run(args)
        sys.stdout.flush()  # now, while a reader that is gone can still be handled
    except UserError as error:
        _refuse(str(error))
    except KeyboardInterrupt:  # raised by something else than the signal, which ends the program by itself
        say("bplightning: interrupted")
        sys.exit(130)
    except BrokenPipeError:  # the program that reads our output, `head` for example, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the very end
        sys.exit(141)  # 128 + SIGPIPE
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        _refuse(str(not_written(error.filename or "a file", error.errno)))


def _run(args: list[str]) -> None:
    name = _named(args)
    if name is None:
        program_parser().parse_args(args)  # --help, --version, or no verb at all
        return
    if name in PAGES and any(word in ("-h", "--help") for word in args):
        sys.stdout.write(page(name))
        return
    args = ["--help" if word == ALL else word for word in args]
    if name in TRAINING_VERBS:
        VERBS[name].load()(args)  # all words: Lightning's parser takes --config before its verb
    elif VERBS[name].parses:
        VERBS[name].load()(args[1:])
    else:
        config = verb_parser(name).parse_args(args[1:])
        VERBS[name].load()(**config)


def _named(args: Sequence[str]) -> str | None:
    """The verb that the words name, if they name one.

    Raises:
        UserError: There is no such verb.
    """
    if not args:
        return None
    if not args[0].startswith("-"):
        if args[0] not in VERBS:
            raise UserError(
                f"no verb is called {args[0]!r}; there are: {', '.join(VERBS)}{did_you_mean(args[0], VERBS)} "
                "(see bplightning --help)"
            )
        return args[0]
    if args[0] in ("-h", "--help", "--version"):
        return None
    return next((word for word in args if word in TRAINING_VERBS), None)


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(f"bplightning: error: {printable(' '.join(message.split()))}\n")
    sys.exit(2)


class _PlainParser(OneLine, argparse.ArgumentParser):
    pass


def program_parser() -> argparse.ArgumentParser:
    """The parser above the verbs, which only lists them."""
    parser = _PlainParser(
        prog="bplightning",
        usage="%(prog)s VERB ...",
        description="Block pruning for faster Transformers. A first run: bplightning fit --strategy hybrid",
        epilog="bplightning VERB --help explains one of them.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {own_version()}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        verbs.add_parser(name, help=verb.line, add_help=False)
    return parser
