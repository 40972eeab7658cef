"""The trainer and the seed of a run, from its settings."""

from __future__ import annotations

import os
import secrets
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bplightning.errors import UserError
from bplightning.io.files import write_whole
from bplightning.io.private import without_secrets
from bplightning.io.run_folder import RunFolder, worked_on
from bplightning.plugins import name_of
from bplightning.runs.build import refusals_said
from bplightning.runs.parser import PluginParser
from bplightning.training.checkpoint_files import folder_of
from bplightning.training.log_interval import LogInterval
from bplightning.training.module import PruningModule
from bplightning.training.progress_lines import ProgressLines
from bplightning.training.stage_bar import StageBar


def add_seed_option(parser: PluginParser) -> None:
    """Let a parser take ``--seed_everything``.

    Args:
        parser: A verb's parser.
    """
    parser.add_argument(
        "--seed_everything",
        type=bool | int,
        default=0,
        help="The seed of all random numbers; true to draw one, false for none.",
    )


def add_trainer_options(parser: PluginParser, defaults: Mapping[str, Any]) -> None:
    """Let a parser take ``--trainer`` and its options.

    Args:
        parser: A verb's parser.
        defaults: What holds of them where the user says nothing.
    """
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({f"trainer.{key}": value for key, value in defaults.items()})


def add_method_options(parser: PluginParser, verb: str, *, skip: frozenset[str] = frozenset()) -> list[str]:
    """Let a parser take the options of a method of the trainer, such as ``--ckpt_path``.

    Args:
        parser: A verb's parser.
        verb: The method's name.
        skip: Which of its arguments are no options, besides model and data.

    Returns:
        The options' names.
    """
    data = {"train_dataloaders", "val_dataloaders"} if verb == "fit" else {"dataloaders"}
    return parser.add_method_arguments(Trainer, verb, skip={"model", "datamodule", *data, *skip})


def seeded(settings: Namespace) -> int | None:
    """Seed all random numbers as the settings say, and have them say which seed that is.

    Args:
        settings: With ``seed_everything``.

    Returns:
        The seed; `None` for none.

    Raises:
        UserError: It is to be drawn, and each rank would draw another.
    """
    seed = settings.seed_everything
    if seed is False:
        return None
    settings.seed_everything = seed_everything(_drawn_seed() if seed is True else seed, workers=True)
    return int(settings.seed_everything)


def _drawn_seed() -> int | None:
    """A random seed; for one of several ranks `None`, with which Lightning takes what the first rank handed on."""
    ranks = max(int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    if ranks == 1:
        return secrets.randbelow(2**32)
    if "PL_GLOBAL_SEED" not in os.environ:
        raise UserError(
            f"--seed_everything is true, but each of the {ranks} processes of this run would draw another seed: give a "
            "number."
        )
    return None


def with_objects(trainer: Namespace) -> Namespace:
    """A trainer's settings with its loggers, callbacks and plugins as objects, which are new at each call.

    Args:
        trainer: The section ``trainer`` as it was parsed.

    Raises:
        UserError: A constructor refuses a value.
    """
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(Trainer, "trainer")
    with refusals_said():
        return parser.instantiate(Namespace(trainer=trainer)).trainer


def make_trainer(settings: Namespace, callbacks: list[Callback], **own: Any) -> Trainer:
    """Lightning's trainer; what it says of a setting is said to the user.

    Args:
        settings: As `with_objects` returns them.
        callbacks: In place of the settings'.
        **own: Other settings in place of these.

    Raises:
        UserError: The trainer refuses a setting.
    """
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        value = settings[name]
        if value is not None and value < 1:
            raise UserError(f"--trainer.{name} is {value}; it must be 1 or more.")
    try:
        return Trainer(**{**settings, "callbacks": callbacks, **own})
    except UserError:
        raise
    except (ImportError, MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(
            f"the trainer cannot be set up so ({error}): change the --trainer option it is about; "
            f"--trainer.accelerator is {settings.accelerator!r}, and 'auto' takes what this machine has."
        ) from error


@contextmanager
def lightning_refusals_said() -> Iterator[None]:
    """What Lightning refuses only when it trains or evaluates is said to the user.

    Raises:
        UserError: In place of what Lightning raised; an error that others raised stays what it is.
    """
    try:
        yield
    except UserError:
        raise
    except (MisconfigurationException, ValueError, TypeError) as error:
        if not isinstance(error, MisconfigurationException) and not _raised_by_lightning(error):
            raise
        raise UserError(f"Lightning refuses this run ({error}): change the --trainer option it is about.") from error


def _raised_by_lightning(error: BaseException) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("lightning.")


def runs_folder_of(settings: Namespace, module: PruningModule) -> Path:
    """The folder of all runs of a task and a strategy.

    Args:
        settings: The trainer's.
        module: The task and the strategy together.
    """
    name = f"{name_of(type(module.task))}-{name_of(type(module.strategy))}"
    return Path(settings.default_root_dir or ".") / "runs" / name


def given_callbacks(settings: Namespace) -> list[Callback]:
    """The user's callbacks, which Lightning takes as one or as several.

    Args:
        settings: As `with_objects` returns them.
    """
    callbacks = settings.callbacks or []
    return [callbacks] if isinstance(callbacks, Callback) else list(callbacks)


def usual_callbacks(settings: Namespace, stage: str, evaluation: str | None = None) -> list[Callback]:
    """The user's callbacks, progress (a line on a terminal, lines in a log file), and how often to log if not given.

    Args:
        settings: As `with_objects` returns them.
        stage: The stage that is trained, for the line.
        evaluation: The stage in which the same trainer evaluates afterwards; by default the same.
    """
    callbacks = given_callbacks(settings)
    wants_bar = settings.enable_progress_bar is not False and not settings.barebones
    if wants_bar and not any(isinstance(item, ProgressBar) for item in callbacks):
        callbacks.append(StageBar(stage, evaluation) if sys.stdout.isatty() else ProgressLines(stage=stage))
    if settings.log_every_n_steps is None:
        callbacks.append(LogInterval())
    return callbacks


def kept_from_others(settings: Namespace, trainer: Trainer, folder: Path) -> AbstractContextManager[None]:
    """Keep other processes from working on a run, where its folder is one that bplightning numbers.

    Args:
        settings: As `with_objects` returns them.
        trainer: The run's trainer.
        folder: The run's folder.
    """
    numbered = settings.logger in (None, True) and not settings.fast_dev_run
    return worked_on(folder) if numbered and trainer.is_global_zero else nullcontext()


def written(parser: PluginParser, settings: Namespace) -> str:
    """Settings as a configuration file holds them, with secrets masked.

    Args:
        parser: The verb's parser.
        settings: What it has parsed.
    """
    text: str = parser.dump(settings, skip_unset=False)
    content = yaml.safe_load(text)
    if (masked := without_secrets(content)) == content:
        return text
    head = [line for line in text.splitlines() if line.startswith("#")]
    return "\n".join([*head, yaml.safe_dump(masked, sort_keys=False, allow_unicode=True)])


class SavesConfig(Callback):
    """Writes the configuration of a run into its folder, once, when training begins and all ranks are there.

    Args:
        parser: The verb's parser.
        settings: What it has parsed.
        overwrite: Whether to replace the configuration that is there: of a run that continues in its own folder.
    """

    def __init__(self, parser: PluginParser, settings: Namespace, *, overwrite: bool = False) -> None:
        self.parser = parser
        self.settings = settings
        self.overwrite = overwrite
        self.saved = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save it, if it has not been.

        Args:
            trainer: The run's own.
        """
        if self.saved:
            return
        self.saved = True
        config = RunFolder(folder_of(trainer)).config  # ranks find it together
        if trainer.is_global_zero:
            config.parent.mkdir(parents=True, exist_ok=True)
            if config.exists() and not self.overwrite:
                raise UserError(f"{str(config)!r} is there already, of another run: name another place for this one.")
            write_whole(config, written(self.parser, self.settings))


class SavesConfigOf(Callback):
    """Saves a run's configuration when its first stage begins: by that a run that is stopped is found.

    Args:
        trainer: The run's own trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it, now that all ranks are there."""
        save_config(self.trainer)


def save_config(trainer: Trainer) -> None:
    """Save a run's configuration, if its trainer is to and has not yet.

    Args:
        trainer: The run's own trainer.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SavesConfig):
            callback.save(trainer)
