"""`compare`: from the command line's words to runs, and from those to table, JSON and page."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console

from bplightning.errors import UserError
from bplightning.io.files import writable, write_whole
from bplightning.reporting.comparison import compare
from bplightning.reporting.comparison_page import draw, render
from bplightning.reporting.page import REPORT_FILE
from bplightning.reporting.report import load_report
from bplightning.runs.parser_errors import OneLine

DESCRIPTION = (
    "Set runs side by side: score against measured latency and size, and which models no other one beats. Runs are "
    "given, or made: with --strategies one for each combination, by `fit` with what stands behind --, each in a folder "
    "of its own; the same command goes on where it was stopped."
)


def run_compare(args: Sequence[str]) -> None:
    """Run the verb.

    Args:
        args: What follows it.

    Raises:
        UserError: Runs cannot be compared, or are neither given nor to be made, or one failed.
    """
    own, fit = _split(args)
    given = compare_parser().parse_args(own)
    places = (given.output, given.page)  # looked at before any run is made
    files = [None if name is None else writable(Path(name), given.overwrite == "true") for name in places]
    runs = _named([Path(run) for run in given.runs])
    if given.strategies:
        runs |= _made(given, fit)
    elif fit or given.seeds or given.models:
        raise UserError("--seeds, --models and what stands behind -- say how to make runs: give --strategies too.")
    if not runs:
        raise UserError("there is nothing to compare: name folders of runs, or give --strategies to make some.")
    reports = {name: load_report(run / REPORT_FILE) for name, run in runs.items()}
    found = compare(reports, metric=given.metric, shape=given.shape)
    if files[0] is not None:
        write_whole(files[0], json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if files[1] is not None:
        write_whole(files[1], draw(found))
    console = Console()
    console.print(render(found))
    for what, file in zip(("JSON", "page"), files, strict=True):
        if file is not None:
            console.print(f"The {what}: {file}", soft_wrap=True, highlight=False, markup=False)


class _Parser(OneLine, argparse.ArgumentParser):
    pass


def compare_parser() -> argparse.ArgumentParser:
    """The verb's own options; what stands behind ``--`` is `fit`'s."""
    parser = _Parser(
        prog="bplightning compare",
        usage="%(prog)s [RUN ...] [options] [-- options of fit]",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="Folder of a run, such as runs/qa-hybrid/version_0.")
    parser.add_argument("--metric", help="The score. Default: the metric that says which model is better.")
    parser.add_argument("--shape", help="Rows x tokens of the latency. Default: 8x128, or the last that all have.")
    parser.add_argument("--strategies", help="Strategies to run, with commas.")
    parser.add_argument("--seeds", help="Seeds to run each with, with commas. Default: 0.")
    parser.add_argument("--models", help="Models to run each with, names or folders, with commas. Default: the task's.")
    parser.add_argument("--folder", default="runs/compared", help="Where these runs are made. Default: %(default)s.")
    parser.add_argument("--output", help="JSON file to write.")
    parser.add_argument("--page", help="HTML file to write, with pictures; it loads nothing.")
    parser.add_argument(
        "--overwrite", choices=("true", "false"), default="false", help="Whether files that are there are replaced."
    )
    return parser


def _split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is ours, and what stands behind ``--``."""
    place = list(args).index("--") if "--" in args else len(args)
    return list(args[:place]), list(args[place + 1 :])


def _made(given: argparse.Namespace, fit: list[str]) -> dict[str, Path]:
    """Make the runs, or go on with them, one after the other; each by a name that its settings give."""
    varied = {"--strategy": "--strategies", "--seed_everything": "--seeds"}
    varied |= {"--task.model": "--models"} if given.models else {}
    for option in (word.partition("=")[0].replace(".init_args.", ".").removesuffix(".class_path") for word in fit):
        if option in varied:
            raise UserError(
                f"{option} stands behind --, where it would hold for every run, and runs are to differ in it: give "
                f"{varied[option]} before the -- instead."
            )
    made = {}
    for model, strategy, seed in itertools.product(
        _words(given.models), _words(given.strategies), _words(given.seeds or "0")
    ):
        options = ["--strategy", strategy, "--seed_everything", seed, *(["--task.model", model] if model else []), *fit]
        key = hashlib.blake2b(shlex.join(options).encode(), digest_size=4).hexdigest()
        name = "-".join([*filter(None, (Path(model).name, strategy.rpartition(".")[2])), f"seed{seed}", key])
        made[name] = _run(Path(given.folder) / name, options)
    return made


def _words(text: str | None) -> list[str]:
    return [""] if text is None else list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _run(root: Path, options: list[str]) -> Path:
    """One run of `fit` in a folder that is its own: with other options it would be another one."""
    if not (done := sorted(root.glob(f"runs/*/version_*/{REPORT_FILE}"))):
        rank_zero_info(f"Running: fit {shlex.join(options)}")
        command = [sys.executable, "-m", "bplightning", "fit", *options]
        command += ["--resume", "true", "--trainer.default_root_dir", str(root)]
        status = subprocess.run(command, check=False).returncode
        done = sorted(root.glob(f"runs/*/version_*/{REPORT_FILE}"))
        if status or not done:
            raise UserError(
                f"`fit {shlex.join(options)}` ended with status {status}{'' if done else ' and without a report'}: its "
                "own output says why. The same command goes on from there."
            )
    return done[-1].parent


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by the shortest ends of their paths, of two parts or more, that tell them apart."""
    paths = list(dict.fromkeys(run.resolve() for run in runs))
    longest = max((len(path.parts) for path in paths), default=2)
    for count in range(2, longest + 1):
        named = {"/".join(path.parts[-count:]): path for path in paths}
        if len(named) == len(paths):
            return named
    return {str(path): path for path in paths}
