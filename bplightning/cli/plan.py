"""`plan`: what `fit` would prune with the same options, without training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace
from rich.console import Console
from transformers import PreTrainedModel

from bplightning.cli.trainers import add_method_options, seeded
from bplightning.cli.training import training_parser
from bplightning.contracts.strategy import Progress
from bplightning.contracts.task import Task
from bplightning.distillation.load_finetuned import load_fitting
from bplightning.io.progress_bar import progress_bar
from bplightning.io.quiet import quiet_loggers, quiet_transformers
from bplightning.planning.engines import ENGINES, engine_of
from bplightning.planning.measured import Measuring, measured
from bplightning.planning.plan import NOMINAL_STEPS, plan
from bplightning.planning.schema import Plan
from bplightning.planning.table import render
from bplightning.plugins import name_of
from bplightning.runs.build import built
from bplightning.runs.parser import PluginParser
from bplightning.runs.training_options import recipe_arguments

DESCRIPTION = (
    "Show what `fit` would prune with the same options: layers, roles, masks, what cannot be pruned, parameters and "
    "FLOPs at the target; with --measure also how fast the model can become on this machine; with --for whether an "
    "engine can hold it. Only the model is built: "
    "no data is read, nothing is trained or written. Of the trainer's options only max_steps matters; --ckpt_path does "
    "not. The status is 1 where `fit` would refuse, or where the engine cannot hold the pruned model."
)


def run_plan(args: list[str]) -> None:
    """Run the verb.

    Args:
        args: What follows it: options of `fit`, ``--measure``, ``--for`` and ``--json``.

    Raises:
        UserError: As `fit` does for the same options, but for what the strategy refuses: it is part of the plan, and
            the process ends with status 1.
    """
    parser = plan_parser()
    with quiet_transformers(), quiet_loggers("lightning.pytorch", "lightning.fabric"):
        settings = parser.parse_args([*recipe_arguments(["fit", *args]), *arranged(args)])
        found = planned(parser, settings)
    if settings.json:
        print(json.dumps(found, indent=2))
    else:
        Console().print(render(found))
    if found["problems"] or (found["engine"] is not None and not found["engine"]["holds"]):
        sys.exit(1)


def plan_parser() -> PluginParser:
    """The parser: options, configuration files and recipes of `fit`, and what only this verb has."""
    parser = training_parser("plan", prog="bplightning plan", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "--measure",
        type=bool | Measuring,
        default=False,
        help="Also time compact copies of the model, pruned at random, and the model itself: the speed-up that this "
        "machine can reach, and where it saturates. --measure.densities, .batch_sizes, .lengths, .device, .dtype and "
        ".seconds choose what is timed and where; --measure.help explains them.",
    )
    parser.add_argument(
        "--for",
        type=Literal[ENGINES] | None,
        default=None,
        help="Also say whether an engine can hold the pruned model, and what would fit: gguf (llama.cpp), portable "
        "(transformers without bplightning, and what reads its checkpoints), vllm or onnx.",
    )
    parser.add_argument("--json", action="store_true", help="Print the plan as JSON and nothing else.")
    add_method_options(parser, "fit")
    return parser


def planned(parser: PluginParser, settings: Namespace) -> Plan:
    """The plan of a run.

    Args:
        parser: As `plan_parser` returns it.
        settings: What it has parsed.

    Raises:
        UserError: As `run_plan` has it.
    """
    measuring = measuring_of(settings)  # what to measure is checked before anything is built
    seed = seeded(settings)
    run = built(parser, settings)
    module, inputs = run.module, run.task.example_inputs
    model = _start(run.task, run.request.start, run.request.baseline)
    found = plan(
        model,
        module.strategy,
        task=name_of(type(run.task)),
        make_inputs=inputs,
        end=_end(module.warmup, settings.trainer.max_steps),
    )
    if measuring is not None and not found["problems"]:
        with progress_bar() as on_progress:
            found["measured"] = measured(
                model, found, measuring, make_inputs=inputs, seed=seed or 0, on_progress=on_progress
            )
    if settings["for"] is not None and not found["problems"]:
        found["engine"] = engine_of(
            settings["for"],
            model,
            module.strategy,
            found,
            tokenizer=run.task.tokenizer,
            no_norm=module.simplification.no_norm,
        )
    return found


def measuring_of(settings: Namespace) -> Measuring | None:
    """What is to be measured; `None` for nothing.

    Args:
        settings: What `plan_parser` has parsed.
    """
    asked = settings.measure
    return Measuring(**asked) if isinstance(asked, Namespace) else Measuring() if asked else None


def arranged(args: list[str]) -> list[str]:
    """``--measure`` may stand alone, and beside its own options, which imply it.

    >>> arranged(["--measure", "--json"]), arranged(["--measure.seconds", "1", "--measure", "true"])
    (['--measure=true', '--json'], ['--measure.seconds', '1'])
    """
    settings = any(item.startswith("--measure.") for item in args)
    ordered: list[str] = []
    following = [*args[1:], "--"]
    for item, after in zip(args, following, strict=True):
        if item == "--measure" and after[:1] == "-":
            item = "--measure=true"
        elif item in ("true", "True") and ordered[-1:] == ["--measure"]:
            ordered.pop()
            item = "--measure=true"
        if not (settings and item == "--measure=true"):
            ordered.append(item)
    return ordered


def _start(task: Task, start: str, baseline: str) -> PreTrainedModel:
    """The model that `fit` would begin to prune; a baseline still to be trained has the shapes of the task's model."""
    if start != "baseline" or baseline in ("none", "train"):
        return task.build_model()
    return load_fitting(task, Path(baseline), what="baseline")


def _end(warmup: float, max_steps: int) -> Progress:
    """The last step of training, in a run of nominal length unless its steps are given."""
    total = max_steps if max_steps > 0 else NOMINAL_STEPS
    return Progress(total, total, warmup_steps=round(warmup * total) if warmup < 1 else int(warmup))
