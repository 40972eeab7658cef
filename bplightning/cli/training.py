"""`fit`, `validate` and `test`: LightningCLI with a task and a strategy in place of a model and its data."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bplightning.cli.parser import PluginParser
from bplightning.cli.training_options import PLUGINS, add_training_options, recipe_arguments
from bplightning.cli.verbs import TRAINING_VERBS
from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.io.invocation import program
from bplightning.io.run_folder import find_model
from bplightning.plugins import name_of
from bplightning.reporting.schema import Report
from bplightning.runs.matching_runs import find_earlier, find_same
from bplightning.training.appending_csv_logger import GrowingCSVLogger
from bplightning.training.checkpoint_files import find_checkpoint
from bplightning.training.interrupts import StopGracefully, resume_command
from bplightning.training.kept_checkpoints import LastCheckpoint, PrunedCheckpoint
from bplightning.training.module import PruningModule, frozen_module
from bplightning.training.progress_lines import ProgressLines
from bplightning.training.ranks import lost_ranks_named

# What Lightning 2.6 makes a user read, who can do nothing about it: names that jsonargparse and torch 2.13 have
# replaced, and advertisements.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
# Neither holds here: a metric gathers its states from all ranks, and leaves out the examples that the sampler repeats.
warnings.filterwarnings("ignore", "Using `DistributedSampler` with the dataloaders", UserWarning)
warnings.filterwarnings("ignore", "It is recommended to use `self.log.*, sync_dist=True", UserWarning)
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip: " not in record.getMessage())


class PruningCLI(LightningCLI):
    """LightningCLI for a `PruningModule`, with ``--task``, ``--strategy`` and ``--baseline``."""

    def __init__(self, args: list[str]) -> None:
        """Parse, build and run.

        Args:
            args: What follows the program's name.
        """
        self.report: Report | None = None
        verbs = {
            name: {"usage": "%(prog)s [options]", "description": TRAINING_VERBS[name]} for name in self.subcommands()
        }
        super().__init__(
            PruningModule,
            trainer_defaults={"max_epochs": 20, "gradient_clip_val": 1.0, "enable_model_summary": False},
            seed_everything_default=0,
            parser_class=PluginParser,
            parser_kwargs={"prog": "bplightning", "allow_abbrev": False, **verbs},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs, but for `predict`, which is this project's own."""
        return {verb: skip for verb, skip in LightningCLI.subcommands().items() if verb in TRAINING_VERBS}

    # -- what can be said ----------------------------------------------------------------------------------------------

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Tell the parser above the verbs where names of plugins may stand in its configuration files."""
        super().setup_parser(*args, **kwargs)
        assert isinstance(self.parser, PluginParser)
        self.parser.sections = {
            verb: parser for verb, parser in self._subcommand_parsers.items() if isinstance(parser, PluginParser)
        }

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Task, strategy, module, trainer and the stages around the training; there is no ``--data``."""
        assert isinstance(parser, PluginParser)
        add_training_options(parser, self.trainer_class, self.trainer_defaults)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args`; ``fit`` without a model or data of the user's own starts from the task's embedded recipe."""
        self.config = parser.parse_args([*args[:1], *recipe_arguments(args), *args[1:]])

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning looks for settings in the file, where ours has none, and trips over a damaged one."""

    # -- what is built -------------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """A run's folder stands for its model; one with a tokenizer is evaluated with that, by a task built for it."""
        settings = self.config[self.subcommand]
        if self.subcommand == "fit" or settings.ckpt_path in (None, "last", "best"):
            return
        folder = Path(settings.ckpt_path)
        if folder.is_dir():
            from bplightning.runs.reading import checkpoint_of  # it stands on the command line

            folder = find_model(folder)
            folder = folder if (folder / "config.json").is_file() else checkpoint_of(folder)
            settings.ckpt_path = str(folder)
        if (folder / "config.json").is_file() and any(folder.glob("tokenizer*")):
            arguments = settings.task.get("init_args", Namespace())
            if "model" in arguments:
                arguments.model = str(folder)

    def instantiate_classes(self) -> None:
        """Build everything; what a constructor says of a value is said to the user."""
        try:
            super().instantiate_classes()
        except UserError:
            raise
        except (ValueError, OSError, ImportError, MisconfigurationException) as error:
            raise UserError(str(error)) from error
        self.datamodule = self._get(self.config_init, "task")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's trainer; `fit` logs to ``runs/<task>-<strategy>/version_N`` unless the user chose a logger."""
        settings = self._get(self.config_init, "trainer")
        if self.subcommand != "fit":
            self.save_config_callback = None  # nothing is made that a configuration could repeat
            if settings.logger in (None, True):
                kwargs["logger"] = False
        else:
            self._earlier = self._find_same() if self.config.fit.resume else None
            if settings.logger in (None, True):
                version = None if self._earlier is None else self._earlier.name
                kwargs["logger"] = GrowingCSVLogger(self._family.parent, name=self._family.name, version=version)
            if self._earlier is not None:
                self.save_config_callback = None  # it is there
            self.save_config_kwargs = {"overwrite": self.config.fit.ckpt_path is not None}  # in its own folder
            self.config.fit.ckpt_path = None  # the saved configuration repeats the run from its start
        kwargs["callbacks"] = [*self._callbacks(settings), self._stop_gracefully()]
        if self._keeps_checkpoints(settings):
            task: Task = self._get(self.config_init, "task")
            kwargs["callbacks"] += [PrunedCheckpoint(f"val_{task.monitor}", task.monitor_mode), LastCheckpoint()]  # type: ignore[arg-type]
        return self.build_trainer(**kwargs)

    def build_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's trainer; what it says of a setting is said to the user."""
        settings = self._get(self.config_init, "trainer")
        try:
            return super().instantiate_trainer(**kwargs)
        except (ImportError, MisconfigurationException) as error:
            raise UserError(
                f"the trainer cannot be set up so ({error}): change the --trainer option it is about; "
                f"--trainer.accelerator is {settings.accelerator!r}, and 'auto' takes what this machine has."
            ) from error

    def stage_trainer(self, folder: Path, max_epochs: int | None = None) -> Trainer:
        """A trainer of the same settings for a stage before or after the pruning, with objects of its own.

        Args:
            folder: Where it writes its metrics, and what it can go on from.
            max_epochs: How long it trains, where that is not as long as the pruning.
        """
        settings = self.parser.instantiate(self.config)[self.subcommand].trainer
        callbacks = [item for item in self._callbacks(settings) if not isinstance(item, Checkpoint)]
        keeps = settings.enable_checkpointing is not False and not settings.barebones
        overrides: dict[str, Any] = {
            "logger": GrowingCSVLogger(folder, name="", version=""),
            "callbacks": [
                *callbacks,
                SavesConfigOf(self.trainer),
                self._stop_gracefully(),
                *([LastCheckpoint()] if keeps else []),
            ],
            "enable_checkpointing": keeps,
        }
        if max_epochs is not None:
            overrides |= {"max_epochs": max_epochs, "max_steps": -1, "min_epochs": None, "min_steps": None}
        return Trainer(**{**settings, **overrides})

    def _stop_gracefully(self) -> StopGracefully:
        """What says, when the run is stopped, how to go on: what `--resume` finds needs no checkpoint named."""
        command, settings = resume_command(program(), sys.argv[1:]), self._get(self.config_init, "trainer")
        if self.subcommand != "fit" or settings.logger not in (None, True) or not self._keeps_checkpoints(settings):
            return StopGracefully(command)
        return StopGracefully(command if self.config.fit.resume else f"{command} --resume true", whole=True)

    def _find_same(self) -> Path | None:
        """The folder of the run of these settings that `--resume` goes on with."""
        settings = self._get(self.config_init, "trainer")
        for option, given in {
            "--trainer.logger": settings.logger not in (None, True),
            "--ckpt_path": self.config.fit.ckpt_path is not None,
            "a checkpoint callback": not self._keeps_checkpoints(settings),
        }.items():
            if given:
                raise UserError(
                    f"--resume finds runs and their checkpoints where bplightning itself puts them, and {option} is "
                    "given, or checkpoints are not kept: leave that out, or give --resume false, and --ckpt_path to go "
                    "on with a checkpoint."
                )
        found = find_same(self._runs(), self._settings())
        rank_zero_info(
            "No run of just these settings is there: beginning one." if found is None else f"Going on with {found}."
        )
        return found

    def _settings(self) -> dict[str, Any]:
        """The configuration as `config.yaml` holds it."""
        text = self._parser(self.subcommand).dump(self.config[self.subcommand], skip_none=False)
        return dict(yaml.safe_load(text))

    @property
    def _family(self) -> Path:
        """The folder of all runs of this task and strategy."""
        settings = self._get(self.config_init, "trainer")
        task, strategy = (name_of(type(self._get(self.config_init, key))) for key in PLUGINS)
        return Path(settings.default_root_dir or ".") / "runs" / f"{task}-{strategy}"

    @staticmethod
    def _keeps_checkpoints(settings: Namespace) -> bool:
        """Whether the user left it to us which checkpoints to keep."""
        return (
            settings.enable_checkpointing is not False
            and not settings.barebones
            and not any(isinstance(item, Checkpoint) for item in PruningCLI._given(settings))
        )

    @staticmethod
    def _given(settings: Namespace) -> list[Callback]:
        """The user's callbacks, which Lightning takes as one or as several."""
        callbacks = settings.callbacks or []
        return [callbacks] if isinstance(callbacks, Callback) else list(callbacks)

    def _callbacks(self, settings: Namespace) -> list[Callback]:
        """The user's callbacks, and progress for a log file where the output is one."""
        callbacks = self._given(settings)
        wants_bar = settings.enable_progress_bar is not False and not settings.barebones
        if wants_bar and not sys.stdout.isatty() and not any(isinstance(item, ProgressBar) for item in callbacks):
            callbacks.append(ProgressLines())
        return callbacks

    # -- what is done --------------------------------------------------------------------------------------------------

    def fit(self, model: PruningModule, datamodule: Task, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Called in place of `Trainer.fit`: the whole path, from the baseline to the report."""
        from bplightning.stages import pipeline

        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        resume = self._earlier is not None
        if not resume and ckpt_path is None and (folder / "config.yaml").exists() and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise UserError(
                f"{str(folder)!r} holds another run's config.yaml: choose another --trainer.default_root_dir, or "
                "--ckpt_path last to go on with that run."
            )
        stop = self._stop_gracefully()
        again = stop.resume if stop.whole else f"{stop.resume} --ckpt_path last"
        fit = lost_ranks_named(self.trainer, remedy=f"Start all ranks again to go on: {again}")(pipeline.fit)
        self.report = fit(
            self.trainer,
            model,
            datamodule,
            baseline=self._get(self.config, "baseline"),
            start=self._get(self.config, "start"),
            alignment=self._get(self.config_init, "alignment"),
            refill=self._get(self.config_init, "refill"),
            quantize=self._get(self.config, "quantize"),
            stage_trainer=self.stage_trainer,
            resume=resume,
            ckpt_path=self._checkpoint(ckpt_path),
            **kwargs,
        )

    def validate(self, model: PruningModule, datamodule: Task, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Called in place of `Trainer.validate`, which knows checkpoints but no models' folders."""
        self._evaluate(self.trainer.validate, model, datamodule, ckpt_path, **kwargs)

    def test(self, model: PruningModule, datamodule: Task, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Called in place of `Trainer.test`, which knows checkpoints but no models' folders."""
        model.metric_prefix = "test"
        self._evaluate(self.trainer.test, model, datamodule, ckpt_path, **kwargs)

    def _evaluate(
        self, verb: Callable[..., Any], module: PruningModule, task: Task, ckpt_path: str | None, **kwargs: Any
    ) -> None:
        ckpt_path = self._checkpoint(ckpt_path)
        if ckpt_path is not None and Path(ckpt_path).is_dir():
            from bplightning.distillation.load_finetuned import load_fitting

            saved = load_fitting(task, Path(ckpt_path), what="--ckpt_path")
            module, ckpt_path = frozen_module(task, saved, prefix=module.metric_prefix), None
        verb(module, datamodule=task, ckpt_path=ckpt_path, **kwargs)

    def _checkpoint(self, ckpt_path: str | None) -> str | None:
        """What ``last`` and ``best`` mean: a file in the folders the user named, or of the newest run like this one."""
        if ckpt_path not in ("last", "best"):
            return ckpt_path
        callbacks = self._given(self._get(self.config_init, "trainer"))
        chosen = [item.dirpath for item in callbacks if isinstance(item, ModelCheckpoint) and item.dirpath]
        found = [path for folder in chosen if (path := find_checkpoint(Path(folder), ckpt_path)) is not None]
        if found:
            path = max(found, key=lambda file: file.stat().st_mtime_ns)
        elif chosen:
            raise UserError(
                f"--ckpt_path is {ckpt_path!r}, but there is no such checkpoint in {', '.join(map(repr, chosen))}: "
                "leave --ckpt_path out to start anew, or give a .ckpt file."
            )
        else:
            path = find_earlier(self._runs(), ckpt_path, self._settings(), training=self.subcommand == "fit")
        rank_zero_info(f"The {'newest' if ckpt_path == 'last' else 'best'} checkpoint is {path}.")
        return str(path)

    def _runs(self) -> list[Path]:
        """Folders of the runs beside this one: where the user's logger puts them, or where we do."""
        settings = self._get(self.config_init, "trainer")
        if settings.logger in (None, True):
            return list(self._family.glob("version_*"))
        here = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        return [here] if settings.logger in (False, []) else list(here.parent.glob("*"))


class SavesConfigOf(Callback):
    """Saves a run's configuration when its first stage begins: by that a run that is stopped is found.

    Args:
        trainer: The run's own trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it, now that all ranks are there."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SaveConfigCallback):
                callback.setup(self.trainer, pl_module, stage)
