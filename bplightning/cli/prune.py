"""`prune`: a fine-tuned model is pruned without training, by a part of `fit`'s options."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

from bplightning.cli.invocation import program
from bplightning.cli.trainers import (
    SavesConfig,
    add_seed_option,
    add_trainer_options,
    kept_from_others,
    make_trainer,
    runs_folder_of,
    save_config,
    seeded,
    usual_callbacks,
    with_objects,
)
from bplightning.errors import UserError
from bplightning.io.files import removed_after_error
from bplightning.io.private import shown_command
from bplightning.io.quiet import quiet_lightning
from bplightning.io.run_folder import RunFolder, settings_of
from bplightning.plugins import TASKS, load
from bplightning.reporting.page import PAGE_FILE
from bplightning.reporting.schema import Report
from bplightning.runs.build import instantiated
from bplightning.runs.parser import PluginParser
from bplightning.runs.training_options import MAX_LOSS_HELP, PLUGINS, PRUNE_ONLY, new_parser
from bplightning.stages.alignment import Alignment
from bplightning.stages.one_shot import EXAMPLES, MODEL, prune
from bplightning.stages.request import MAX_LOSS, RunRequest
from bplightning.training.appending_csv_logger import AppendingCSVLogger
from bplightning.training.checkpoint_files import folder_of
from bplightning.training.module import PruningModule

DESCRIPTION = (
    "Prune a fine-tuned model without training: the strategy looks at some training examples, then the model is "
    "compacted, evaluated and reported as at the end of `fit`. It takes minutes, not hours, and is less accurate where "
    "much is pruned. The trainer's options about training have no effect."
)
OWN_PLUGINS = PLUGINS | {"strategy": replace(PLUGINS["strategy"], default="post-training")}


def run_prune(args: Sequence[str]) -> Report | None:
    """Run the verb.

    Args:
        args: What follows it.

    Raises:
        UserError: An option or its value makes no sense, the model is not fine-tuned, or it cannot be pruned so.
    """
    parser = prune_parser()
    settings = parser.parse_args(list(args))
    _require_fine_tuned(settings)
    seed = seeded(settings)
    objects = instantiated(parser, settings)
    module, chosen = PruningModule(objects.task, objects.strategy), with_objects(settings.trainer)
    own: dict[str, Any] = {"enable_checkpointing": False}
    if chosen.logger in (None, True):
        runs = runs_folder_of(chosen, module)
        own["logger"] = AppendingCSVLogger(runs.parent, name=runs.name)
    saves = [] if chosen.fast_dev_run else [SavesConfig(parser, settings)]
    request = RunRequest(
        command=shown_command([*program(), "prune", *args]),
        seed=seed,
        baseline=settings.baseline,
        alignment=objects.alignment,
        quantize=settings.quantize,
        max_loss=settings.max_loss,
    )
    progress = usual_callbacks(chosen, request.stage("prune"), request.stage("evaluate"))
    trainer = make_trainer(chosen, [*progress, *saves], **own)
    folder = folder_of(trainer)
    _remove_unfinished(folder)
    if RunFolder(folder).config.exists():
        raise UserError(f"{str(folder)!r} holds another run's config.yaml: choose another --trainer.default_root_dir.")
    with quiet_lightning(), kept_from_others(chosen, trainer, folder), removed_after_error(*_written(folder)):
        return prune(
            trainer,
            module,
            request,
            calibration_examples=settings.calibration_examples,
            begin=lambda: save_config(trainer),
        )


def _written(folder: Path) -> list[Path]:
    """What this verb writes into a run's folder before its result, and is of no use without it, as far as is not there.

    Args:
        folder: The run's folder.
    """
    run = RunFolder(folder)
    paths = (
        run.config,
        run.baseline_model,
        run.baseline,
        run.unfinished,
        run.int8_static,
        run.path / PAGE_FILE,
        *_logged(run.path),
    )
    return [path for path in paths if not path.exists()]


def _logged(folder: Path) -> tuple[Path, Path]:
    return folder / "metrics.csv", folder / "hparams.yaml"


def _remove_unfinished(folder: Path) -> None:
    """Remove what a `prune` left that was killed: its configuration and baseline, with neither a report nor a model."""
    run = RunFolder(folder)
    if run.report.exists() or run.compact.exists() or not run.config.is_file():
        return
    try:
        of_prune = PRUNE_ONLY in settings_of(folder)
    except UserError:
        return
    if of_prune:
        run.config.unlink()
        shutil.rmtree(run.baseline_model, ignore_errors=True)


def prune_parser() -> PluginParser:
    """The parser: task, strategy, calibration, baseline and trainer; nothing of training."""
    parser = new_parser(
        prog="bplightning prune", usage="%(prog)s [options]", description=DESCRIPTION, allow_abbrev=False
    )
    add_seed_option(parser)
    for key, plugin in OWN_PLUGINS.items():
        parser.add_plugin_arguments(key, plugin)
    parser.add_argument(
        f"--{PRUNE_ONLY}",
        type=int | None,
        default=None,
        help="Training examples that the strategy looks at, chosen at random by the seed, 1 or more; all there "
        f"are, if those are fewer. By default as many as the strategy asks for, else {EXAMPLES:,}.",
    )
    parser.add_argument(
        "--baseline",
        type=str,
        default=MODEL,
        metavar="FOLDER|model|none",
        help="The dense model that the report compares with: `model`, the one that is pruned, which the run then "
        "keeps in its baseline/, the folder of a saved one, or `none`.",
    )
    parser.add_argument(
        "--quantize",
        type=Literal["int8", "int8-static"] | None,
        default=None,
        help="Whether to evaluate and time the compact model in 8 bits too (ONNX Runtime). int8-static takes ranges "
        "from training examples, holds --max_loss, and leaves its file in the run. By default not.",
    )
    parser.add_argument("--max_loss", type=float, default=MAX_LOSS, help=MAX_LOSS_HELP)
    parser.add_class_arguments(Alignment, "alignment", instantiate=True)
    # One process: each would do the same.
    add_trainer_options(parser, {"devices": 1, "enable_model_summary": False})
    return parser


def _require_fine_tuned(settings: Namespace) -> None:
    """Refuse the model that a task takes by default: pruning without training needs a fine-tuned one."""
    task = settings.task
    recipe = getattr(load(TASKS, task.class_path), "embedded_recipe", None)
    if recipe is not None and task.get("init_args", {}).get("model", "") is None:
        raise UserError(
            "--task.model is not given, and pruning without training needs a fine-tuned model, which the task's "
            "default is not: give the folder of one."
        )
