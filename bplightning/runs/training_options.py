"""The options of a run: task, strategy, module, and the stages around the training."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any, Literal

from jsonargparse import ActionConfigFile

from bplightning.contracts.strategy import PruningStrategy
from bplightning.contracts.task import Task
from bplightning.distillation.distillation import Distillation
from bplightning.plugins import STRATEGIES, TASKS, load
from bplightning.runs.class_paths import CONFIG_OPTIONS
from bplightning.runs.parser import PluginArgument, PluginParser
from bplightning.runs.strategy_options import check_strategy_options
from bplightning.stages.alignment import Alignment
from bplightning.stages.refill import Refill
from bplightning.stages.request import MAX_LOSS
from bplightning.training.module import PruningModule
from bplightning.training.simplification import Simplification

PLUGINS = {
    "task": PluginArgument(base=Task, group=TASKS, default="qa"),
    "strategy": PluginArgument(base=PruningStrategy, group=STRATEGIES, default="hybrid", check=check_strategy_options),
}
PRUNE_ONLY = "calibration_examples"
"""The option by which a configuration of `prune` is known."""

MAX_LOSS_HELP = (
    "With --quantize int8-static: the most that it may lose of the compact model's score (the task's first metric, in "
    "its own unit, mostly points). The layers that hurt most stay in float until it holds."
)

RECIPE_STEPS_ASIDE = re.compile(r"--task\.(init_args\.)?(model|dataset|\w+_file)|-c|--config|-h|--help|--.+\.help")
"""Options of one who brings a model, data or a configuration (a task names its arguments so), or reads the help."""


def new_parser(**options: Any) -> PluginParser:
    """A parser that reads configuration files and writes them as Lightning does, and has no other options yet.

    Args:
        **options: Of `jsonargparse.ArgumentParser`.
    """
    parser = PluginParser(**options, dump_header=[f"lightning.pytorch=={version('lightning')}"])
    parser.add_argument(*CONFIG_OPTIONS, action=ActionConfigFile, help="Configuration file to read, in YAML or JSON.")
    parser.add_trust_option()
    return parser


def add_run_options(parser: PluginParser) -> None:
    """Let a parser take all that says what a run is, but for its trainer and its seed; the task is the data.

    Args:
        parser: The parser.
    """
    for key, plugin in PLUGINS.items():
        parser.add_plugin_arguments(key, plugin)
    parser.refused |= {
        PRUNE_ONLY: "it is of a run of `prune`, and only `prune` takes it. That run's model is its compact/: "
        "`validate --ckpt_path RUN/compact --task ...` evaluates it"
    }
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
        "`baseline`, the fine-tuned dense model, which --baseline trains or names. Other verbs ignore it.",
    )
    parser.add_argument(
        "--resume",
        type=bool,
        default=False,
        help="Whether `fit` continues the newest run with exactly these settings, in its own folder: finished stages "
        "are not repeated, nor is a finished run. Where there is no such run, a new one begins, so the same command "
        "begins a run and continues it. Other verbs ignore it.",
    )
    parser.add_argument(
        "--quantize",
        type=Literal["int8", "int8-static"] | None,
        default=None,
        help="Also evaluate, time and report the compact model in 8 bits (ONNX Runtime); `export --quantize int8` "
        "writes the files. int8-static takes ranges from training examples, holds --max_loss, and leaves its file in "
        "the run. Default: no. Other verbs ignore it.",
    )
    parser.add_argument("--max_loss", type=float, default=MAX_LOSS, help=MAX_LOSS_HELP + " Other verbs ignore it.")
    parser.add_class_arguments(Distillation, "distillation")
    parser.add_class_arguments(Simplification, "simplification")
    parser.add_class_arguments(Alignment, "alignment", instantiate=True)
    parser.add_class_arguments(Refill, "refill", instantiate=True)
    parser.add_lightning_class_args(PruningModule, "model")
    for key in PLUGINS:
        parser.link_arguments(key, f"model.{key}", apply_on="instantiate")
    parser.link_arguments("distillation", "model.distillation", apply_on="instantiate")
    parser.link_arguments("simplification", "model.simplification", apply_on="instantiate")


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
    recipe = getattr(load(TASKS, task, typed=True), "embedded_recipe", None)
    return [] if recipe is None else [f"--config={recipe}"]
