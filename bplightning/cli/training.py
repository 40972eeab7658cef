"""`fit`, `validate` and `test`: LightningCLI with a task and a strategy in place of a model and its data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from bplightning.cli.invocation import program
from bplightning.cli.trainers import (
    SavesConfig,
    SavesConfigOf,
    add_method_options,
    add_seed_option,
    add_trainer_options,
    given_callbacks,
    kept_from_others,
    lightning_refusals_said,
    make_trainer,
    runs_folder_of,
    seeded,
    usual_callbacks,
    with_objects,
)
from bplightning.cli.verbs import TRAINING_VERBS
from bplightning.distillation.load_finetuned import load_fitting
from bplightning.errors import UserError
from bplightning.io.private import shown_command
from bplightning.io.quiet import quiet_lightning
from bplightning.io.run_folder import RunFolder, find_model, one_at_a_time, require_none_begins
from bplightning.reporting.schema import Report
from bplightning.runs.build import BuiltRun, built
from bplightning.runs.matching_runs import find_earlier, find_same
from bplightning.runs.parser import PluginParser
from bplightning.runs.reading import checkpoint_of
from bplightning.runs.training_options import add_run_options, new_parser, recipe_arguments
from bplightning.stages import pipeline
from bplightning.training.appending_csv_logger import AppendingCSVLogger
from bplightning.training.checkpoint_files import find_checkpoint, folder_of
from bplightning.training.interrupts import StopGracefully, resume_command
from bplightning.training.kept_checkpoints import LastCheckpoint, PrunedCheckpoint
from bplightning.training.module import PruningModule, frozen_module
from bplightning.training.ranks import lost_ranks_named

TRAINER_DEFAULTS = {"max_epochs": 20, "gradient_clip_val": 1.0, "enable_model_summary": False}


def training_parser(verb: str, **options: Any) -> PluginParser:
    """The parser of `fit`, `validate` or `test`.

    Args:
        verb: Which.
        **options: Of `jsonargparse.ArgumentParser`.
    """
    parser = new_parser(usage="%(prog)s [options]", **{"description": TRAINING_VERBS.get(verb), **options})
    add_seed_option(parser)
    add_run_options(parser)
    add_trainer_options(parser, TRAINER_DEFAULTS)
    return parser


def whole_parser(verbs: Sequence[str]) -> PluginParser:
    """The parser above verbs' parsers: a configuration file before the verb has a section for each.

    Args:
        verbs: Which.
    """
    parser = new_parser(prog="bplightning", allow_abbrev=False)
    subcommands = parser.add_subcommands()
    for verb in verbs:
        parser.sections[verb] = training_parser(verb)
        add_method_options(parser.sections[verb], verb)
        subcommands.add_subcommand(verb, parser.sections[verb], help=TRAINING_VERBS[verb])
    return parser


def run_training(args: Sequence[str]) -> None:
    """Run `fit`, `validate` or `test`.

    Args:
        args: The verb and its options; a configuration file may come before the verb.
    """
    with quiet_lightning():
        PruningCLI(args, program()).run()


class PruningCLI(LightningCLI):
    """LightningCLI for a `PruningModule`: its verbs `fit`, `validate` and `test`, with ``--task`` and ``--strategy``.

    It parses and builds as it is made, and runs when it is asked to (`run`). A subclass adds options in
    `add_arguments_to_parser`, and has the hooks of any LightningCLI: `before_instantiate_classes`, `before_fit`,
    `after_fit`, and so on. It can override `fit`, `validate` and `test`, which take no arguments: settings are here.

    Args:
        args: The verb and its options.
        program: The words before them, as one would type them.

    Attributes:
        config: What was parsed, by verb.
        seed: The run's seed; `None` for none.
        built: What the settings name, as objects.
        model: The module; ``datamodule`` is its task.
        trainer: The run's trainer.
        report: What `fit` has returned, on the first rank; for `after_fit`.
    """

    parser: PluginParser
    report: Report | None = None

    def __init__(self, args: Sequence[str], program: Sequence[str] = ("bplightning",)) -> None:
        self.words = [*program, *args]
        self._verbs = list(args[:1]) if args and args[0] in TRAINING_VERBS else list(TRAINING_VERBS)
        super().__init__(
            PruningModule,
            save_config_callback=None,  # `SavesConfig`, which stages before the pruning can call as well
            parser_class=PluginParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=list(args),
        )

    def run(self) -> Report | None:
        """Do it, with a subclass's hooks around it; `fit` returns its report, on the first rank."""
        super()._run_subcommand(self.verb)
        return self.report

    @property
    def verb(self) -> str:
        """The verb that was typed."""
        return str(self.subcommand)

    @property
    def settings(self) -> Namespace:
        """The section of the verb in `config`."""
        section: Namespace = self.config[self.verb]
        return section

    # -- LightningCLI's steps ------------------------------------------------------------------------------------------

    def setup_parser(self, add_subcommands: bool, main_kwargs: Any, subparser_kwargs: Any) -> None:
        """The parser that completion and the schema describe, too; only the verb that was typed is built."""
        self.parser = whole_parser(self._verbs)
        self._subcommand_parsers: dict[str, LightningArgumentParser] = dict(self.parser.sections)
        for parser in self._subcommand_parsers.values():
            self.add_arguments_to_parser(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args`; ``fit`` without a model or data of the user's own starts from the task's embedded recipe."""
        self.config = parser.parse_args([*args[:1], *recipe_arguments(args), *args[1:]])

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning looks for settings in the file, where ours has none, and trips over a damaged one."""

    def _set_seed(self) -> None:
        """As the other verbs do: Lightning takes 0 where it is to draw one."""
        self.seed = seeded(self.settings)

    def instantiate_classes(self) -> None:
        """Build everything, as a run is built when it is read back, and then the trainer."""
        self.ckpt_path: str | None = self.settings.ckpt_path
        if self.verb != "fit":
            self._find_evaluated()
        self.built: BuiltRun = built(self.parser.sections[self.verb], self.settings)
        self.model, self.datamodule = self.built.module, self.built.task
        self._given = with_objects(self.settings.trainer)  # the trainer's settings, with loggers and callbacks
        self._earlier = self._find_same() if self.verb == "fit" and self.settings.resume else None
        self.trainer = self.instantiate_trainer()

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing yet, at the end of the constructor: `run` does it, and has a result."""

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Nothing: `fit`, `validate` and `test` read `settings`."""
        return {}

    # -- what is built -------------------------------------------------------------------------------------------------

    def _find_evaluated(self) -> None:
        """A folder becomes its model or checkpoint; one with a tokenizer is evaluated with that, by a task for it."""
        if self.ckpt_path in (None, "last", "best"):
            return
        folder = Path(self.ckpt_path)
        if folder.is_dir():
            folder = find_model(folder)
            folder = folder if (folder / "config.json").is_file() else checkpoint_of(folder)
            self.ckpt_path = str(folder)
        if (folder / "config.json").is_file() and any(folder.glob("tokenizer*")):
            arguments = self.settings.task.get("init_args", Namespace())
            if "model" in arguments:
                arguments.model = str(folder)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The run's trainer; `fit` logs to ``runs/<task>-<strategy>/version_N`` unless the user chose a logger."""
        own: dict[str, Any] = dict(kwargs)
        stages = map(self.built.request.stage, ("prune", "evaluate")) if self.verb == "fit" else (self.verb,)
        callbacks = [*usual_callbacks(self._given, *stages), self._stop_gracefully()]
        if self._logs_by_default:
            own["logger"] = self._logger() if self.verb == "fit" else False
        if self._keeps_checkpoints:
            task = self.built.task
            callbacks += [PrunedCheckpoint(f"val_{task.monitor}", task.monitor_mode), LastCheckpoint()]  # type: ignore[arg-type]
        if self.verb == "fit" and self._earlier is None and not self._given.fast_dev_run:
            self.settings.ckpt_path = None  # the saved configuration repeats the run from its start
            in_own_folder = self.ckpt_path is not None
            callbacks.append(SavesConfig(self.parser.sections[self.verb], self.settings, overwrite=in_own_folder))
        return make_trainer(self._given, callbacks, **own)

    def _logger(self) -> AppendingCSVLogger:
        version = None if self._earlier is None else self._earlier.name
        return AppendingCSVLogger(self._runs_folder.parent, name=self._runs_folder.name, version=version)

    def stage_trainer(self, folder: Path, max_epochs: int | None = None) -> Trainer:
        """A trainer of the same settings for a stage before or after the pruning, with objects of its own.

        Args:
            folder: Where it writes its metrics, and what it can go on from.
            max_epochs: How long it trains, where that is not as long as the pruning.
        """
        settings = with_objects(self.settings.trainer)
        usual = usual_callbacks(settings, self.built.request.stage(folder.name))
        callbacks = [item for item in usual if not isinstance(item, Checkpoint)]
        keeps = settings.enable_checkpointing is not False and not settings.barebones
        callbacks += [SavesConfigOf(self.trainer), self._stop_gracefully(), *([LastCheckpoint()] if keeps else [])]
        own: dict[str, Any] = {"logger": AppendingCSVLogger(folder, name="", version=""), "enable_checkpointing": keeps}
        if max_epochs is not None:
            own |= {"max_epochs": max_epochs, "max_steps": -1, "min_epochs": None, "min_steps": None}
        return make_trainer(settings, callbacks, **own)

    def _stop_gracefully(self) -> StopGracefully:
        """What says, when the run is stopped, how to go on: what `--resume` finds needs no checkpoint named."""
        command = resume_command(self.words)
        if self.verb != "fit" or not self._logs_by_default or not self._keeps_checkpoints:
            return StopGracefully(command)
        return StopGracefully(command if self.settings.resume else f"{command} --resume true", whole=True)

    def _find_same(self) -> Path | None:
        """The folder of the run of these settings that `--resume` continues."""
        for option, given in {
            "--trainer.logger": not self._logs_by_default,
            "--ckpt_path": self.ckpt_path is not None,
            "a checkpoint callback": not self._keeps_checkpoints,
        }.items():
            if given:
                raise UserError(
                    f"--resume finds runs and their checkpoints where bplightning itself puts them, and {option} is "
                    "given, or checkpoints are not kept: leave that out, or give --resume false, and --ckpt_path to go "
                    "on with a checkpoint."
                )
        found = find_same(self._runs_folder.glob("version_*"), self._configuration())
        rank_zero_info(
            "No run of just these settings is there: beginning one." if found is None else f"Going on with {found}."
        )
        return found

    def _configuration(self) -> dict[str, Any]:
        """The settings as `config.yaml` holds them."""
        return dict(yaml.safe_load(self.parser.sections[self.verb].dump(self.settings, skip_unset=False)))

    @property
    def _runs_folder(self) -> Path:
        return runs_folder_of(self._given, self.built.module)

    @property
    def _logs_by_default(self) -> bool:
        """Whether the user left it to us where a run is logged."""
        return self._given.logger in (None, True)

    @property
    def _keeps_checkpoints(self) -> bool:
        """Whether the user left it to us which checkpoints to keep."""
        return (
            self._given.enable_checkpointing is not False
            and not self._given.barebones
            and not any(isinstance(item, Checkpoint) for item in given_callbacks(self._given))
        )

    # -- what is done --------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """The whole path, from the baseline to the `report`."""
        for name in ("max_epochs", "max_steps"):
            if self._given[name] == 0:
                raise UserError(
                    f"--trainer.{name} is 0, so nothing would be trained or pruned: give 1 or more, or take the verb "
                    "`prune`, which prunes without training."
                )
        folder = folder_of(self.trainer)
        resume = self._earlier is not None
        if not resume and self.ckpt_path is None and RunFolder(folder).config.exists() and not self._given.fast_dev_run:
            raise UserError(
                f"{str(folder)!r} holds another run's config.yaml: choose another --trainer.default_root_dir, or "
                "--ckpt_path last to continue that run."
            )
        begins = self.settings.resume and not resume and self.trainer.is_global_zero
        with ExitStack() as kept:
            with one_at_a_time(folder.parent) if begins else nullcontext():
                kept.enter_context(kept_from_others(self._given, self.trainer, folder))
                if begins:
                    self._require_none_begun(folder)
            self.report = self._pipeline(resume=resume)

    def _require_none_begun(self, folder: Path) -> None:
        """Refuse to begin a run that another process has begun since this one has looked for it."""
        require_none_begins(folder)
        others = (run for run in self._runs_folder.glob("version_*") if run != folder)
        if (found := find_same(others, self._configuration())) is not None:
            raise UserError(
                f"another process has begun this run too, {str(found)!r}: repeat the command to continue it."
            )

    def _pipeline(self, *, resume: bool) -> Report | None:
        stop = self._stop_gracefully()
        again = stop.resume if stop.whole else f"{stop.resume} --ckpt_path last"
        run = self.built
        request = replace(
            run.request,
            command=shown_command(self.words),
            seed=self.seed,
            resume=resume,
            ckpt_path=self._checkpoint(),
            weights_only=self.settings.weights_only,
        )
        fit = lost_ranks_named(self.trainer, remedy=f"Start all ranks again to continue: {again}")(pipeline.fit)
        with lightning_refusals_said():
            return fit(self.trainer, run.module, request, stage_trainer=self.stage_trainer)

    def validate(self) -> None:
        """The score on the validation set."""
        self._evaluate()

    def test(self) -> None:
        """The score on the test set."""
        self._evaluate()

    def _evaluate(self) -> None:
        """`Trainer.validate` or `Trainer.test`, which know checkpoints but no models' folders."""
        module, task, ckpt_path = self.built.module, self.built.task, self._checkpoint()
        if ckpt_path is not None and Path(ckpt_path).is_dir():
            saved = load_fitting(task, Path(ckpt_path), what="--ckpt_path")
            module, ckpt_path = frozen_module(task, saved, prefix=None), None
        evaluate = getattr(self.trainer, self.verb)
        settings = self.settings
        with lightning_refusals_said():
            evaluate(
                module,
                datamodule=task,
                ckpt_path=ckpt_path,
                verbose=settings.verbose,
                weights_only=settings.weights_only,
            )

    def _checkpoint(self) -> str | None:
        """What ``last`` and ``best`` mean: a file in the folders the user named, or of the newest run like this one."""
        if self.ckpt_path not in ("last", "best"):
            return self.ckpt_path
        callbacks = given_callbacks(self._given)
        chosen = [item.dirpath for item in callbacks if isinstance(item, ModelCheckpoint) and item.dirpath]
        found = [path for folder in chosen if (path := find_checkpoint(Path(folder), self.ckpt_path)) is not None]
        if found:
            path = max(found, key=lambda file: file.stat().st_mtime_ns)
        elif chosen:
            raise UserError(
                f"--ckpt_path is {self.ckpt_path!r}, but there is no such checkpoint in "
                f"{', '.join(map(repr, chosen))}: leave --ckpt_path out to begin a new run, or give a .ckpt file."
            )
        else:
            training = self.verb == "fit"
            path = find_earlier(self._runs(), self.ckpt_path, self._configuration(), training=training)
        rank_zero_info(f"The {'newest' if self.ckpt_path == 'last' else 'best'} checkpoint is {path}.")
        return str(path)

    def _runs(self) -> list[Path]:
        """Folders of the runs next to this one: where the user's logger puts them, or where we do."""
        if self._logs_by_default:
            return list(self._runs_folder.glob("version_*"))
        here = folder_of(self.trainer)
        return [here] if self._given.logger in (False, []) else list(here.parent.glob("*"))
