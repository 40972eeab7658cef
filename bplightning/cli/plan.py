"""`plan`: what `fit` would prune with the same options, without training."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from bplightning.cli.training import PruningCLI
from bplightning.contracts.strategy import Progress
from bplightning.contracts.task import Task
from bplightning.distillation.load_finetuned import load_fitting
from bplightning.io.progress_bar import watching
from bplightning.planning.measured import Measuring, measured
from bplightning.planning.plan import NOMINAL_STEPS, plan
from bplightning.planning.schema import Plan
from bplightning.planning.table import render
from bplightning.plugins import name_of
from bplightning.training.module import PruningModule

DESCRIPTION = (
    "Show what `fit` would prune with the same options: layers, roles, masks, what cannot be pruned so, parameters and "
    "FLOPs at the target; with --measure also how fast it can get on this machine. Only the model is built: no data is "
    "read, nothing trained and nothing written. Options of the trainer but max_steps make no difference, nor does "
    "--ckpt_path. Ends with status 1 where `fit` would refuse."
)


def run_plan(args: list[str]) -> None:
    """Run the verb.

    Args:
        args: What follows it: options of `fit`, ``--measure`` and ``--json``.

    Raises:
        UserError: As `fit` does for the same options, but for what the strategy refuses: it is part of the plan, and
            the process ends with status 1.
    """
    with _quiet():
        cli = PlanCLI(["fit", *_arranged(args)])
    if cli.wants_json:
        print(json.dumps(cli.plan, indent=2))
    else:
        Console().print(render(cli.plan))
    if cli.plan["problems"]:
        sys.exit(1)


class PlanCLI(PruningCLI):
    """`fit` to its parser, so that options, configuration files and recipes are the same; makes a plan in its place."""

    plan: Plan
    wants_json: bool

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """`fit`'s parser under this verb's name."""
        super().setup_parser(*args, **kwargs)
        parser = self._subcommand_parsers["fit"]
        parser.prog = "bplightning plan"
        parser.usage = "%(prog)s [options]"
        parser.description = DESCRIPTION

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What `fit` does not have."""
        parser.add_argument(
            "--measure",
            type=bool | Measuring,
            default=False,
            help="Whether to time compact copies of the model, pruned at random, beside it: the speed-up that can be "
            "had on this machine, and where it saturates. --measure.densities, .batch_sizes, .lengths, .device, .dtype "
            "and .seconds say which and where; --measure.help explains them.",
        )
        parser.add_argument("--json", action="store_true", help="Print the plan as JSON and nothing else.")

    def before_instantiate_classes(self) -> None:
        """What to measure is checked before anything is built."""
        super().before_instantiate_classes()
        asked = self.config.fit.measure
        self._measuring = Measuring(**asked) if isinstance(asked, Namespace) else Measuring() if asked else None

    def instantiate_classes(self) -> None:
        """Build task, strategy and module; loggers and callbacks of a configuration file would have effects."""
        trainer = self.config.fit.trainer
        trainer.logger, trainer.callbacks, trainer.profiler, trainer.plugins = False, None, None, None
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """None that runs; only a class, which no device is needed for."""
        return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)

    def _run_subcommand(self, subcommand: str) -> None:
        module: PruningModule = self.model
        settings = self.config.fit
        self.wants_json = settings.json
        model = _start(module.task, settings.start, settings.baseline)
        inputs = module.task.example_inputs
        self.plan = plan(
            model,
            module.strategy,
            task=name_of(type(module.task)),
            make_inputs=inputs,
            end=_end(module.warmup, settings.trainer.max_steps),
        )
        if self._measuring is not None and not self.plan["problems"]:
            seed = int(settings.seed_everything)
            with watching() as watch:
                self.plan["measured"] = measured(
                    model, self.plan, self._measuring, make_inputs=inputs, seed=seed, watch=watch
                )


def _arranged(args: list[str]) -> list[str]:
    """``--measure`` may stand alone, and beside its own options, which imply it.

    >>> _arranged(["--measure", "--json"]), _arranged(["--measure.seconds", "1", "--measure", "true"])
    (['--measure=true', '--json'], ['--measure.seconds', '1'])
    """
    settings = any(item.startswith("--measure.") for item in args)
    arranged: list[str] = []
    following = [*args[1:], "--"]
    for item, after in zip(args, following, strict=True):
        if item == "--measure" and after[:1] == "-":
            item = "--measure=true"
        elif item in ("true", "True") and arranged[-1:] == ["--measure"]:
            arranged.pop()
            item = "--measure=true"
        if not (settings and item == "--measure=true"):
            arranged.append(item)
    return arranged


def _start(task: Task, start: str, baseline: str) -> PreTrainedModel:
    """The model that `fit` would begin to prune; a baseline still to be trained has the shapes of the task's model."""
    if start != "baseline" or baseline in ("none", "train"):
        return task.build_model()
    return load_fitting(task, Path(baseline), what="baseline")


def _end(warmup: float, max_steps: int) -> Progress:
    """The last step of training, in a run of nominal length unless its steps are given."""
    total = max_steps if max_steps > 0 else NOMINAL_STEPS
    return Progress(total, total, warmup_steps=round(warmup * total) if warmup < 1 else int(warmup))


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what loading a model and setting a seed say beside the plan; warnings come through."""
    lightning = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in lightning]
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    try:
        for logger in lightning:
            logger.setLevel(logging.WARNING)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        yield
    finally:
        for logger, level in zip(lightning, levels, strict=True):
            logger.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
