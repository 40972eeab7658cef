"""A run is built from its configuration: task, strategy and module, with no trainer and no command line."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.task import Task
from bplightning.errors import UserError
from bplightning.runs.class_paths import typed_alone
from bplightning.runs.parser import PluginParser
from bplightning.runs.training_options import add_run_options, new_parser
from bplightning.stages.request import RunRequest
from bplightning.training.module import PruningModule


@dataclass(frozen=True)
class BuiltRun:
    """What a configuration names, as objects.

    Attributes:
        module: The task and the strategy together.
        request: What is to be done with it; the command, the seed and a checkpoint are not in a configuration.
    """

    module: PruningModule
    request: RunRequest

    @property
    def task(self) -> Task:
        """The module's task."""
        return self.module.task


def build(configuration: Mapping[str, Any]) -> BuiltRun:
    """Build what a configuration names; nothing is trained or written.

    Args:
        configuration: Sections as ``config.yaml`` has them, but for the trainer and the seed; plugins by short name or
            class path.

    Raises:
        ArgumentError: It has an option that is not known, or a value that an option cannot have.
        UserError: There is no such plugin, or a value makes no sense to what takes it.
    """
    parser = new_parser(exit_on_error=False)
    add_run_options(parser)
    return built(parser, parser.parse_args([f"--config={yaml.safe_dump(dict(configuration))}"]))


def built(parser: PluginParser, settings: Namespace) -> BuiltRun:
    """Build what parsed settings name.

    Args:
        parser: A parser with `add_run_options`.
        settings: What it has parsed.

    Raises:
        UserError: A value makes no sense to what takes it.
    """
    objects = instantiated(parser, settings)
    request = RunRequest(
        baseline=settings.baseline,
        start=settings.start,
        alignment=objects.alignment,
        refill=objects.refill,
        quantize=settings.quantize,
        max_loss=settings.max_loss,
    )
    return BuiltRun(objects.model, request)


def strategy_of(settings: Namespace) -> PruningStrategy:
    """Build the strategy alone that parsed settings name.

    Args:
        settings: What a parser with `add_run_options` has parsed.

    Raises:
        UserError: A value makes no sense to the strategy.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--strategy", type=PruningStrategy)
    with refusals_said():
        strategy: PruningStrategy = parser.instantiate(Namespace(strategy=settings.strategy)).strategy
    return strategy


def instantiated(parser: ArgumentParser, settings: Namespace) -> Namespace:
    """Settings with objects in the place of what describes them, but for a trainer's loggers and callbacks.

    Args:
        parser: The parser.
        settings: What it has parsed.

    Raises:
        UserError: A value makes no sense to what takes it: the constructor's own words.
    """
    settings = settings.clone()
    settings.pop("trainer", None)
    with refusals_said():
        return parser.instantiate(settings)


@contextmanager
def refusals_said() -> Iterator[None]:
    """What a constructor says of a value is said to the user.

    Raises:
        UserError: In place of what the constructor raised.
    """
    try:
        with typed_alone():
            yield
    except UserError:
        raise
    except (ValueError, OSError, ImportError, MisconfigurationException) as error:
        raise UserError(str(error)) from error
    except TypeError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not str(frame.f_globals.get("__name__")).startswith("jsonargparse."):
            raise  # a fault of a plugin's own
        reason = str(error).rpartition(">) ")[2]  # without the objects of the parser
        raise UserError(f"the value of an option with options of its own is of another form ({reason}).") from error
