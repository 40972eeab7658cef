"""`fit`, `validate` and `test`: LightningCLI with a task and a strategy in place of a model and its data."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info

from bplightning.checkpoint_files import newest_checkpoint
from bplightning.checkpoints import LastCheckpoint, PrunedCheckpoint
from bplightning.cli import TRAINING_VERBS
from bplightning.errors import UserError
from bplightning.interrupts import StopGracefully, resume_command
from bplightning.invocation import program
from bplightning.loading import load_saved
from bplightning.module import PruningModule, frozen_module
from bplightning.parser import PluginArgument, PluginParser
from bplightning.plugins import STRATEGIES, TASKS, load, name_of
from bplightning.progress import ProgressLines
from bplightning.strategy import PruningStrategy
from bplightning.task import Task

# What Lightning 2.6 makes a user read, who can do nothing about it: names that jsonargparse and torch 2.13 have
# replaced, and advertisements.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip: " not in record.getMessage())

PLUGINS = {
    "task": PluginArgument(base=Task, group=TASKS, default="qa"),
    "strategy": PluginArgument(base=PruningStrategy, group=STRATEGIES, default="hybrid"),
}
RECIPE_STEPS_ASIDE = re.compile(r"--task\.(init_args\.)?(model|dataset|\w+_file)|-c|--config|-h|--help|--.+\.help")
"""Options of one who brings a model, data or a configuration (a task names its arguments so), or reads the help."""


class PruningCLI(LightningCLI):
    """LightningCLI for a `PruningModule`, with ``--task``, ``--strategy`` and ``--baseline``."""

    def __init__(self, args: list[str]) -> None:
        """Parse, build and run.

        Args:
            args: What follows the program's name.
        """
        verbs = {name: {"usage": "%(prog)s [options]", "description": line} for name, line in TRAINING_VERBS.items()}
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
        """Lightning's verbs, but for `predict`, which no task answers yet."""
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
        """Task, strategy, baseline, module and trainer; the task is the data, so there is no ``--data``."""
        assert isinstance(parser, PluginParser)
        for key, plugin in PLUGINS.items():
            parser.add_plugin_arguments(key, plugin)
        parser.add_argument(
            "--baseline",
            type=str,
            default="none",
            metavar="FOLDER|train|none",
            help="The dense model that the report of `fit` compares with: a saved model's folder, `train` to fine-tune "
            "one first with the same settings, or `none`. Other verbs ignore it.",
        )
        parser.add_argument(
            "--start",
            type=Literal["pretrained", "baseline"],
            default="pretrained",
            help="What `fit` starts pruning from: `pretrained`, the task's model as it is, as in the papers, or "
            "`baseline`, the fine-tuned dense one where there is one. Other verbs ignore it.",
        )
        parser.add_lightning_class_args(PruningModule, "model")
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})
        for key in PLUGINS:
            parser.link_arguments(key, f"model.{key}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args`; ``fit`` without a model or data of the user's own starts from the task's embedded recipe."""
        self.config = parser.parse_args([*args[:1], *recipe_arguments(args), *args[1:]])

    # -- what is built -------------------------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Build everything; what a constructor says of a value is said to the user."""
        try:
            super().instantiate_classes()
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error
        self.datamodule = self._get(self.config_init, "task")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's trainer; `fit` logs to ``runs/<task>-<strategy>/version_N`` unless the user chose a logger."""
        settings = self._get(self.config_init, "trainer")
        if self.subcommand != "fit":
            self.save_config_callback = None  # nothing is made that a configuration could repeat
            if settings.logger in (None, True):
                kwargs["logger"] = False
        elif settings.logger in (None, True):
            kwargs["logger"] = CSVLogger(self._family.parent, name=self._family.name)
            self.config[self.subcommand].ckpt_path = None  # the saved configuration repeats the run from its start
        resume = resume_command(program(), sys.argv[1:])
        kwargs["callbacks"] = [*self._callbacks(settings), StopGracefully(resume)]
        if self._keeps_checkpoints(settings):
            task: Task = self._get(self.config_init, "task")
            kwargs["callbacks"] += [PrunedCheckpoint(f"val_{task.monitor}", task.monitor_mode), LastCheckpoint()]  # type: ignore[arg-type]
        return super().instantiate_trainer(**kwargs)

    def baseline_trainer(self, folder: Path) -> Trainer:
        """A trainer of the same settings for the dense baseline, with objects of its own.

        Args:
            folder: Where it writes its metrics. It keeps no checkpoints: the baseline's model is saved at the end.
        """
        settings = self.parser.instantiate(self.config)[self.subcommand].trainer
        callbacks = [item for item in self._callbacks(settings) if not isinstance(item, Checkpoint)]
        overrides: dict[str, Any] = {
            "logger": CSVLogger(folder, name="", version=""),
            "callbacks": [*callbacks, StopGracefully()],
            "enable_checkpointing": False,
        }
        return Trainer(**{**settings, **overrides})

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
            and not any(isinstance(item, Checkpoint) for item in settings.callbacks or [])
        )

    @staticmethod
    def _callbacks(settings: Namespace) -> list[Callback]:
        """The user's callbacks, and progress for a log file where the output is one."""
        callbacks: list[Callback] = list(settings.callbacks or [])
        wants_bar = settings.enable_progress_bar is not False and not settings.barebones
        if wants_bar and not sys.stdout.isatty() and not any(isinstance(item, ProgressBar) for item in callbacks):
            callbacks.append(ProgressLines())
        return callbacks

    # -- what is done --------------------------------------------------------------------------------------------------

    def fit(self, model: PruningModule, datamodule: Task, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Called in place of `Trainer.fit`: the whole path, from the baseline to the report."""
        from bplightning import pipeline

        pipeline.fit(
            self.trainer,
            model,
            datamodule,
            baseline=self._get(self.config, "baseline"),
            start=self._get(self.config, "start"),
            baseline_trainer=self.baseline_trainer,
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
            if not (Path(ckpt_path) / "config.json").is_file():
                raise UserError(
                    f"--ckpt_path {ckpt_path!r} is a folder without a config.json: give the folder of a saved model, "
                    "such as a run's compact/, or a file, such as one in a run's checkpoints/."
                )
            saved = load_saved(task.load_model, Path(ckpt_path), what="--ckpt_path")
            module, ckpt_path = frozen_module(task, saved, prefix=module.metric_prefix), None
        verb(module, datamodule=task, ckpt_path=ckpt_path, **kwargs)

    def _checkpoint(self, ckpt_path: str | None) -> str | None:
        """What ``last`` and ``best`` mean where each run has a folder of its own: the newest of all of them."""
        settings = self._get(self.config_init, "trainer")
        chosen = [item for item in settings.callbacks or [] if isinstance(item, ModelCheckpoint) and item.dirpath]
        if ckpt_path not in ("last", "best") or chosen or settings.logger not in (None, True):
            return ckpt_path
        path = newest_checkpoint(self._family, ckpt_path)
        rank_zero_info(f"The {'newest' if ckpt_path == 'last' else 'newest best'} checkpoint is {path}.")
        return str(path)


def recipe_arguments(args: list[str]) -> list[str]:
    """``--config RECIPE`` when `fit` is asked for with no configuration, model or data of the user's own, else nothing.

    Args:
        args: What follows the program's name.
    """
    options = [item.partition("=")[0] for item in args[1:]]
    if args[:1] != ["fit"] or any(RECIPE_STEPS_ASIDE.fullmatch(item) for item in options):
        return []
    task = PLUGINS["task"].default
    for item, following in zip(args, [*args[1:], ""], strict=True):
        option, equals, value = item.partition("=")
        if option == "--task":
            task = value if equals else following
    recipe = getattr(load(TASKS, task), "embedded_recipe", None)
    return [] if recipe is None else [f"--config={recipe}"]
