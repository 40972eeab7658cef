"""The command line: Lightning's verbs for training, and this project's own beside them.

``bplightning``, ``python -m bplightning`` and ``python cli.py`` are this one program. To add a verb, write a function
with typed arguments and a docstring, and put it into `VERBS`: its arguments and help follow from its signature.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentParser

from bplightning.errors import UserError


def compact(run: str, out: str) -> None:
    """Write the compact model of a finished run.

    Args:
        run: Folder of the run, such as runs/qa-hybrid/version_0.
        out: Folder to write: an ordinary transformers folder with weights, configuration and tokenizer.
    """
    from bplightning.pipeline import compact_run

    compact_run(Path(run), Path(out))


VERBS: dict[str, Callable[..., None]] = {"compact": compact}
TRAINING_VERBS = {
    "fit": "Fine-tune and prune, then compact, evaluate and report. With no model or data of yours: a small example.",
    "validate": "Evaluate on the validation set, usually with --config and --ckpt_path of a run.",
    "test": "Evaluate on the test set.",
}


def main(argv: list[str] | None = None) -> None:
    """Run the program.

    Args:
        argv: What follows the program's name; by default that of this process.
    """
    args = sys.argv[1:] if argv is None else argv
    try:
        if any(verb in args for verb in TRAINING_VERBS) and args[0] not in VERBS:
            from bplightning.training_cli import PruningCLI  # only now: it takes seconds to import

            PruningCLI(args)
        else:
            parser = build_parser()
            config = parser.parse_args(args)
            VERBS[config.verb](**config[config.verb])
    except UserError as error:
        sys.stderr.write(f"bplightning: error: {' '.join(str(error).split())}\n")
        sys.exit(2)


def build_parser() -> ArgumentParser:
    """The parser of everything but training, which it only lists."""
    parser = ArgumentParser(
        prog="bplightning",
        description="Block pruning for faster Transformers. Start with: bplightning fit --strategy hybrid",
    )
    verbs = parser.add_subcommands(dest="verb", metavar="VERB")
    for name, line in TRAINING_VERBS.items():
        verbs.add_subcommand(name, ArgumentParser(), help=line)
    for name, function in VERBS.items():
        description = (function.__doc__ or "").partition("\n")[0]
        subparser = ArgumentParser(description=description)
        subparser.add_function_arguments(function, as_positional=True)
        verbs.add_subcommand(name, subparser, help=description)
    return parser
