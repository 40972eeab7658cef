"""The short help of verbs that take hundreds of options: those that matter first, and how to see the others.

Nothing here imports torch, so that help is quick: plugins are listed by the docstrings in their files.
"""

from __future__ import annotations

import argparse
import shutil
import textwrap

from bplightning.cli.verbs import VERBS
from bplightning.plugins import STRATEGIES, TASKS, summary

ALL = "--help.all"
"""The option that prints every option."""

Options = dict[str, tuple[str, str]]
"""Option to its metavar and its line of help."""

TASK: Options = {
    "--task": ("NAME", "What the model learns, see below. Default: qa."),
    "--task.model": ("MODEL", "Folder of a model, or its name on the hub."),
    "--task.train_file": ("FILE", "Training data: CSV, JSON lines or Parquet."),
    "--task.validation_file": ("FILE", "Validation data."),
    "--task.dataset": ("NAME", "Or a data set of the hub: nyu-mll/glue."),
    "--task.columns": ("{OURS: YOURS}", "Names of columns: {text: review}."),
}
STRATEGY: Options = {
    "--strategy": ("NAME", "How to prune, see below. Default: hybrid."),
    "--strategy.target.density": ("D", "Fraction of prunable weights to keep: 0.25."),
    "--strategy.target.flops": ("F", "Or the share of FLOPs to keep: 0.5."),
    "--strategy.target.latency_speedup": ("S", "Or how many times faster, as measured: 2."),
}
EVALUATED: Options = {name: told for name, told in TASK.items() if name != "--task.train_file"}
AROUND: Options = {
    "--baseline": ("FOLDER|train|none", "Dense model to compare with. Default: none."),
    "--start": ("pretrained|baseline", "Model to prune. Default: pretrained."),
    "--distillation.teacher": ("MODEL", "Folder, name or `baseline`. Default: none."),
    "--refill.max_epochs": ("N", "Fine-tuning of the compact model. Default: 0."),
}
TRAINING: Options = {
    "--trainer.max_epochs": ("N", "Epochs, of baseline and of pruning. Default: 20."),
    "--trainer.devices": ("N", "Number of devices. Default: all there are."),
    "--model.learning_rate": ("RATE", "Peak learning rate. Default: 3e-5."),
}
RUN: Options = {
    "--config": ("FILE", "YAML file of options; typed options win."),
    "--print_config": ("", "Print the whole configuration and exit."),
    "--seed_everything": ("N", "Seed of everything random. Default: 0."),
    "--trust": ("CLASS_PATHS", "Classes that configuration files may name."),
}
FOLDER: Options = {"--trainer.default_root_dir": ("FOLDER", "Where runs/ is made, if not here.")}
RESUME: Options = {"--resume": ("true", "Continue the newest run of these settings.")}
CHECKPOINT: Options = {
    "--ckpt_path": ("FILE|last|best", "A checkpoint, or the folder of a model or run."),
    "--strategy": ("NAME", "What pruned a checkpoint. Default: hybrid."),
}
PRUNE: Options = {
    "--calibration_examples": ("N", "Training examples to look at."),
    "--baseline": ("FOLDER|model|none", "Dense model to compare with. Default: model."),
}
PLAN: Options = {
    "--measure": ("", "Also time compact copies of the model here."),
    "--for": ("ENGINE", "Also say whether gguf, portable, vllm or onnx can hold it."),
    "--json": ("", "Print the plan as JSON and nothing else."),
}
POST_TRAINING = STRATEGY | {"--strategy": ("NAME", "How to prune. Default: post-training.")}

PAGES: dict[str, dict[str, Options]] = {
    "fit": {
        "the task": TASK,
        "the pruning": STRATEGY,
        "before and after it": AROUND,
        "the run": TRAINING | RUN | FOLDER | RESUME,
    },
    "validate": {"the task": EVALUATED, "the evaluation": CHECKPOINT | RUN},
    "test": {"the task": EVALUATED, "the evaluation": CHECKPOINT | RUN},
    "plan": {"the task": TASK, "the pruning": STRATEGY, "the plan": PLAN | RUN},
    "prune": {"the task": TASK, "the pruning": POST_TRAINING | PRUNE, "the run": RUN | FOLDER},
}
"""Verb to the groups of its page."""


def page(verb: str) -> str:
    """The short help of a verb.

    Args:
        verb: A key of `PAGES`.
    """
    parser = argparse.ArgumentParser(
        usage=f"bplightning {verb} [options]",
        description=VERBS[verb].line,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
    )
    for title, options in PAGES[verb].items():
        group = parser.add_argument_group(title)
        for option, (metavar, line) in options.items():
            if metavar:
                group.add_argument(option, metavar=metavar, help=line)
            else:
                group.add_argument(option, action="store_true", help=line)
    more = parser.add_argument_group("more help")
    more.add_argument("--task.help, --strategy.help", metavar="NAME", help="The options of a task or a strategy.")
    more.add_argument(ALL, action="store_true", help="Every option.")
    return "\n".join([parser.format_help(), *_plugins("tasks", TASKS), "", *_plugins("strategies", STRATEGIES), ""])


def _plugins(title: str, group: str) -> list[str]:
    """A list of the registered plugins, each in one line of the terminal."""
    lines, width = summary(group), shutil.get_terminal_size().columns - 2
    longest = max(map(len, lines), default=0)
    shortened = {name: textwrap.shorten(line, width - longest - 4, placeholder=" ...") for name, line in lines.items()}
    return [f"{title}:", *(f"  {name:{longest}}  {line}" for name, line in shortened.items())]
