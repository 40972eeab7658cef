"""The verb `compare`: from the words of the command line to runs, and from those to table, JSON and page."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bplightning.errors import UserError
from bplightning.io.ending import Interrupted, let_finish
from bplightning.io.files import writable, write_whole
from bplightning.io.parser_errors import OneLine
from bplightning.io.private import shown_command
from bplightning.io.run_folder import REPORT_FILE

if TYPE_CHECKING:
    from bplightning.contracts.strategy import PruningStrategy

DESCRIPTION = (
    "Compare runs: score against measured latency and size, and which models are Pareto-optimal. Name the folders of "
    "finished runs, or give --strategies to make them first: `fit` runs once for each combination of strategy, seed "
    "and model, with the options after --, each run in its own folder. Repeat the command to continue a stopped one."
)


def run_compare(args: Sequence[str]) -> None:
    """Run the verb.

    Args:
        args: The words after it.

    Raises:
        UserError: Runs cannot be compared, none is given or made, or one failed.
    """
    own, fit = _split(args)
    given = compare_parser().parse_args(own)
    # Imported only now, so that help is quick.
    from rich.console import Console

    from bplightning.reporting.comparison import compare
    from bplightning.reporting.comparison_page import draw, render
    from bplightning.reporting.report import load_report
    from bplightning.reporting.run_options import read_options

    places = (given.output, given.page)  # checked before any run is made
    files = [None if name is None else writable(Path(name), given.overwrite == "true") for name in places]
    runs = _named([Path(run) for run in given.runs])
    if given.strategies:
        runs |= _made(given, fit)
    elif fit or given.seeds or given.models:
        raise UserError("--seeds, --models and the options after -- are for runs to make: give --strategies too.")
    if not runs:
        raise UserError("there is nothing to compare: name folders of runs, or give --strategies to make some.")
    reports = {name: load_report(run / REPORT_FILE) for name, run in runs.items()}
    options = {name: read_options(run) for name, run in runs.items()}
    found = compare(reports, options, metric=given.metric, shape=given.shape, each=given.each == "true")
    if files[0] is not None:
        write_whole(files[0], json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    if files[1] is not None:
        write_whole(files[1], draw(found, _pages(runs, files[1].parent)))
    console = Console()
    console.print(render(found))
    for what, file in zip(("JSON", "page"), files, strict=True):
        if file is not None:
            console.print(f"The {what}: {file}", soft_wrap=True, highlight=False, markup=False)


class _Parser(OneLine, argparse.ArgumentParser):
    pass


def compare_parser() -> argparse.ArgumentParser:
    """The verb's own options; those after ``--`` are `fit`'s."""
    parser = _Parser(
        prog="bplightning compare",
        usage="%(prog)s [RUN ...] [options] [-- options of fit]",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="Folder of a run, such as runs/qa-hybrid/version_0.")
    parser.add_argument("--metric", help="The score. Default: the metric by which the task picks the best model.")
    parser.add_argument(
        "--shape", help="Rows x tokens of the latency. Default: 8x128, or the last shape that all runs have."
    )
    parser.add_argument("--strategies", help="Strategies to run, separated by commas.")
    parser.add_argument("--seeds", help="Seeds for each strategy, separated by commas. Default: 0.")
    parser.add_argument(
        "--models", help="Models for each strategy, names or folders, separated by commas. Default: the task's."
    )
    parser.add_argument("--folder", default="runs/compared", help="Folder for these runs. Default: %(default)s.")
    parser.add_argument(
        "--each",
        choices=("true", "false"),
        default="false",
        help="Whether runs that differ only in their seed are rows of their own. Default: false, one row with the mean "
        "and the spread.",
    )
    parser.add_argument("--output", help="JSON file to write.")
    parser.add_argument("--page", help="HTML file to write, with charts; it needs no other file.")
    parser.add_argument(
        "--overwrite", choices=("true", "false"), default="false", help="Whether to replace files that exist."
    )
    return parser


def _pages(runs: dict[str, Path], folder: Path) -> dict[str, str]:
    """The addresses of the runs' own pages as seen from a folder."""
    pages = {name: run / "report.html" for name, run in runs.items()}
    return {
        name: quote(Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix())
        for name, page in pages.items()
        if page.is_file()
    }


def _split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words before ``--`` and those after it."""
    place = list(args).index("--") if "--" in args else len(args)
    return list(args[:place]), list(args[place + 1 :])


def _made(given: argparse.Namespace, fit: list[str]) -> dict[str, Path]:
    """Make or continue the runs, one after the other; each folder is named after its settings."""
    varied = {"--strategy": "--strategies", "--seed_everything": "--seeds"}
    varied |= {"--task.model": "--models"} if given.models else {}
    for option in (word.partition("=")[0].replace(".init_args.", ".").removesuffix(".class_path") for word in fit):
        if option in varied:
            raise UserError(
                f"{option} is given after --, where it would hold for every run, but the runs differ in it: give "
                f"{varied[option]} before the -- instead."
            )
    strategies, options_of = _words(given.strategies), {}
    without = _without_target(strategies, fit)
    for model, strategy, seed in itertools.product(_words(given.models), strategies, _words(given.seeds or "0")):
        options = ["--strategy", strategy, "--seed_everything", seed, *(["--task.model", model] if model else [])]
        options += without.get(strategy, fit)
        key = hashlib.blake2b(shlex.join(options).encode(), digest_size=4).hexdigest()
        name = "-".join([*filter(None, (Path(model).name, strategy.rpartition(".")[2])), f"seed{seed}", key])
        options_of[name] = options
    _say_targets(_require_runnable(options_of.values()))
    return {name: _run(Path(given.folder) / name, options) for name, options in options_of.items()}


def _without_target(strategies: Sequence[str], fit: list[str]) -> dict[str, list[str]]:
    """The options of `fit` for strategies that have no target, such as dense, where others that have one are given it.

    Args:
        strategies: Short names or class paths.
        fit: The options after ``--``.

    Returns:
        Each such strategy with the options for it; empty where no target is given, or nobody could take it.
    """
    from bplightning.contracts.targeted import Targeted  # these take seconds to import
    from bplightning.plugins import STRATEGIES, load

    kept: list[str] = []
    target: list[str] = []
    goes_on = False  # whether a word is the value of the option before it
    for word in fit:
        if word.startswith("--"):
            option = word.partition("=")[0].replace(".init_args.", ".")
            goes_on = option == "--strategy.target" or option.startswith("--strategy.target.")
        (target if goes_on else kept).append(word)
    try:
        without = [
            name for name in strategies if not getattr(load(STRATEGIES, name, typed=True), "offers", bool)(Targeted)
        ]
    except UserError:  # which is said with the command that it is of
        return {}
    if not target or not without or len(without) == len(strategies):
        return {}
    sys.stderr.write(f"bplightning: {shown_command(target)} is left out for what has no target: {', '.join(without)}\n")
    return dict.fromkeys(without, kept)


def _require_runnable(runs: Iterable[list[str]]) -> list[PruningStrategy]:
    """Parse the options of all runs and make their strategies, before any run is made.

    Raises:
        UserError: The options of one are refused, by the parser or by its strategy, or it does not prune in training.
    """
    from bplightning.cli.training import whole_parser  # these take seconds to import
    from bplightning.contracts.suitability import require_by_training
    from bplightning.runs.build import strategy_of
    from bplightning.runs.training_options import recipe_arguments

    parser, strategies = whole_parser(["fit"]), []
    for options in runs:
        words = ["fit", *options]
        try:
            strategies.append(strategy_of(parser.parse_args(["fit", *recipe_arguments(words), *options]).fit))
            require_by_training(strategies[-1])
        except UserError as error:
            raise UserError(f"no run was made, as `{shown_command(words)}` is refused: {error}") from error
    return strategies


def _say_targets(strategies: Iterable[PruningStrategy]) -> None:
    """Warn where strategies that take a target are compared at the defaults of each."""
    from bplightning.contracts.target import shown
    from bplightning.contracts.targeted import Targeted
    from bplightning.plugins import name_of

    targets = {}
    for strategy in strategies:
        if (targeted := strategy.capability(Targeted)) is not None:
            asked = targeted.target
            targets[name_of(type(strategy))] = f"target.{asked.kind} {shown(asked.value)}" if asked.kind else "none"
    if len(targets) > 1 and (len({*targets.values()}) > 1 or "none" in targets.values()):
        told = ", ".join(f"{name}: {target}" for name, target in targets.items())
        sys.stderr.write(
            f"bplightning: warning: the strategies have different targets ({told}): give one to all after --, such as "
            "--strategy.target.density 0.25\n"
        )


def _words(text: str | None) -> list[str]:
    return [""] if text is None else list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _run(root: Path, options: list[str]) -> Path:
    """One run of `fit` in a folder of its own; other options make another run."""
    from lightning.pytorch.utilities import rank_zero_info

    if not (done := sorted(root.glob(f"runs/*/version_*/{REPORT_FILE}"))):
        rank_zero_info(f"Running: fit {shown_command(options)}")
        command = [sys.executable, "-m", "bplightning", "fit", *options]
        command += ["--resume", "true", "--trainer.default_root_dir", str(root)]
        status = _status(command)
        done = sorted(root.glob(f"runs/*/version_*/{REPORT_FILE}"))
        if status or not done:
            raise UserError(
                f"`fit {shown_command(options)}` ended with status {status}{'' if done else ' and without a report'}: "
                "its output above says why. Repeat the command to continue from there."
            )
    return done[-1].parent


def _status(command: Sequence[str]) -> int:
    """How a process ended. A signal to this one is handed on, once: the other saves a checkpoint before it ends."""
    with subprocess.Popen(command, start_new_session=True) as process:
        let_finish(True)
        try:
            return process.wait()
        except Interrupted as stop:
            process.send_signal(stop.signum)
            try:
                process.wait()
            except Interrupted:
                process.kill()
            raise
        finally:
            let_finish(False)


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs named by the shortest ends of their paths, two parts or more, that tell them apart."""
    paths = list(dict.fromkeys(run.resolve() for run in runs))
    longest = max((len(path.parts) for path in paths), default=2)
    for count in range(2, longest + 1):
        named = {"/".join(path.parts[-count:]): path for path in paths}
        if len(named) == len(paths):
            return named
    return {str(path): path for path in paths}
